//! What the tests start and talk through. Everything binds free ports of the loopback interface and
//! ends with the test.

pub mod discovery;
pub mod proxy;
pub mod raw;
pub mod zookeeper;
