//! The registrations that every side reads: services, instances and changes in a real ZooKeeper.
//!
//! It refuses to know who reads them. Each instance has 220 bytes of data; a change writes a new
//! stamp into the first instance of a service. Invariant: stamps only grow, over all trees.

use std::{cell::Cell, net::SocketAddr};

use futures_util::{StreamExt, TryStreamExt, stream};
use zookeeper_client::{Acls, Client, CreateMode};

use super::{
    journal::{Journal, MARK, Service, Stamp},
    zookeeper::ZooKeeper,
};

/// Ten instances in every service of this tree, so many services as were asked for last.
pub const MANY: &str = "/many";
/// Few services, of more and more instances.
pub const LARGE: &str = "/large";
/// How many instances the services of that tree have.
pub const SIZES: [u32; 4] = [10, 100, 1_000, 10_000];
pub const INSTANCES: u32 = 10;

const DATA: usize = 220;
const HEAP: usize = 768;
/// Znodes in one transaction, and transactions under way.
const BATCH: usize = 200;
const DEPTH: usize = 8;

pub struct Mesh {
    pub zookeeper: ZooKeeper,
    pub writer: Client,
    stamp: Cell<Stamp>,
    services: Cell<Service>,
}

impl Mesh {
    pub async fn start() -> Self {
        let zookeeper = ZooKeeper::start_with_heap(HEAP);
        let writer = zookeeper.client().await;
        let mesh = Self {
            zookeeper,
            writer,
            stamp: Cell::new(1),
            services: Cell::new(0),
        };
        mesh.create(vec![(MANY.into(), vec![]), (LARGE.into(), vec![])])
            .await;
        for (service, size) in (0..).zip(SIZES) {
            mesh.create(znodes(LARGE, service, size)).await;
        }
        mesh
    }

    pub fn services(&self) -> Service {
        self.services.get()
    }

    /// Adds services to the tree of many until there are so many.
    pub async fn grow(&self, services: Service) {
        let new = (self.services.get()..services).flat_map(|s| znodes(MANY, s, INSTANCES));
        self.create(new.collect()).await;
        self.services.set(services);
    }

    /// Adds services beside those of the rig, each with this one instance.
    pub async fn register(&self, root: &str, services: &[String], instance: SocketAddr) {
        let znodes = services.iter().flat_map(|service| {
            let parent = format!("{root}/{service}");
            let child = (format!("{parent}/i"), instance.to_string().into_bytes());
            [(parent, vec![]), child]
        });
        self.create(znodes.collect()).await;
    }

    pub async fn deregister(&self, root: &str, services: &[String]) {
        for service in services {
            for path in [format!("{root}/{service}/i"), format!("{root}/{service}")] {
                let deleted = self.writer.delete(&path, None).await;
                deleted.expect("a znode that is there");
            }
        }
    }

    async fn create(&self, znodes: Vec<(String, Vec<u8>)>) {
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let batches = stream::iter(znodes.chunks(BATCH)).map(|batch| {
            let mut writer = self.writer.new_multi_writer();
            for (path, data) in batch {
                writer.add_create(path, data, &options).expect("a path");
            }
            writer.commit()
        });
        let done: Result<Vec<_>, _> = batches.buffered(DEPTH).try_collect().await;
        done.expect("znodes that were not there");
    }

    /// The stamp of the next change.
    pub fn next_stamp(&self) -> Stamp {
        self.stamp.get()
    }

    /// Changes each of the services in one transaction, and waits until ZooKeeper has it.
    pub async fn change(&self, journal: &Journal, root: &str, services: &[Service]) {
        let mut writer = self.writer.new_multi_writer();
        for service in services {
            let stamp = self.stamp.replace(self.stamp.get() + 1);
            journal.pages().begin(*service, stamp);
            let path = format!("{root}/s{service}/i0");
            let data = payload(*service, 0, Some(stamp));
            writer.add_set_data(&path, &data, None).expect("a path");
        }
        writer.commit().await.expect("znodes that are there");
    }
}

fn znodes(root: &str, service: Service, instances: u32) -> Vec<(String, Vec<u8>)> {
    let parent = format!("{root}/s{service}");
    let instance = |i| (format!("{parent}/i{i}"), payload(service, i, None));
    let instances: Vec<_> = (0..instances).map(instance).collect();
    [(parent, vec![])].into_iter().chain(instances).collect()
}

fn payload(service: Service, instance: u32, stamp: Option<Stamp>) -> Vec<u8> {
    let (network, subnet, host) = (service % 250, instance / 250, instance % 250);
    let mark = std::str::from_utf8(MARK).expect("a word");
    let stamp = stamp.map(|stamp| format!(r#","at":"{mark}{stamp:010}""#));
    let head = format!(
        r#"{{"host":"10.{network}.{subnet}.{host}","port":8080,"weight":100,"zone":"a","metadata":{{"version":"1","team":"checkout"{}"#,
        stamp.unwrap_or_default(),
    );
    format!("{head:<width$}}}}}", width = DATA - 2).into_bytes()
}
