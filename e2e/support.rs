//! What the tests start and talk through. Everything binds free ports of the loopback interface and
//! ends with the test.

pub mod backend;
pub mod clock;
pub mod dice;
pub mod discovery;
pub mod disk;
pub mod ensemble;
pub mod envoy;
pub mod fleet;
pub mod grpc;
pub mod http;
pub mod meshkeeper;
pub mod mortal;
pub mod observer;
pub mod proxy;
pub mod raw;
pub mod registrar;
pub mod timeline;
pub mod traffic;
pub mod tree;
pub mod wait;
pub mod zookeeper;
