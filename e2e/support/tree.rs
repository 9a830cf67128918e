//! Writes registrations as services do, through a session of its own.

use zookeeper_client::{Acls, Client, CreateMode, Error};

use super::zookeeper::ZooKeeper;

const ROOT: &str = "/services";

/// A session; its ephemeral znodes go with it.
pub struct Tree(Client);

impl Tree {
    pub async fn connect(zookeeper: &ZooKeeper) -> Self {
        let client = zookeeper.client().await;
        let tree = Self(client);
        tree.ensure(ROOT).await;
        tree
    }

    /// An ephemeral instance.
    pub async fn register(&self, service: &str, id: &str, data: &[u8]) {
        self.create(service, id, data, CreateMode::Ephemeral).await;
    }

    /// An instance that outlives its session.
    pub async fn write_persistent(&self, service: &str, id: &str, data: &[u8]) {
        self.create(service, id, data, CreateMode::Persistent).await;
    }

    pub async fn write(&self, service: &str, id: &str, data: &[u8]) {
        self.0
            .set_data(&format!("{ROOT}/{service}/{id}"), data, None)
            .await
            .unwrap();
    }

    pub async fn delete(&self, service: &str, id: &str) {
        self.0
            .delete(&format!("{ROOT}/{service}/{id}"), None)
            .await
            .unwrap();
    }

    /// The service must have no instances.
    pub async fn delete_service(&self, service: &str) {
        self.0
            .delete(&format!("{ROOT}/{service}"), None)
            .await
            .unwrap();
    }

    pub async fn add_service(&self, service: &str) {
        self.ensure(&format!("{ROOT}/{service}")).await;
    }

    async fn create(&self, service: &str, id: &str, data: &[u8], mode: CreateMode) {
        self.add_service(service).await;
        let options = mode.with_acls(Acls::anyone_all());
        self.0
            .create(&format!("{ROOT}/{service}/{id}"), data, &options)
            .await
            .unwrap();
    }

    async fn ensure(&self, path: &str) {
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        match self.0.create(path, b"", &options).await {
            Ok(_) | Err(Error::NodeExists) => {}
            Err(error) => panic!("{path}: {error}"),
        }
    }
}
