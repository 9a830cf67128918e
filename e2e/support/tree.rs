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

    /// A persistent instance anywhere, with all that is above it.
    pub async fn create_at(&self, path: &str, data: &[u8]) {
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.0.mkdir(parent, &options).await.unwrap();
        }
        self.0.create(path, data, &options).await.unwrap();
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

    /// Persistent instances, many at once.
    pub async fn create_many(&self, service: &str, all: impl Iterator<Item = (String, Vec<u8>)>) {
        self.add_service(service).await;
        let all: Vec<_> = all.collect();
        for some in all.chunks(500) {
            let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
            let create = async |(id, data): &(String, Vec<u8>)| {
                let path = format!("{ROOT}/{service}/{id}");
                self.0.create(&path, data, &options).await.unwrap();
            };
            futures_util::future::join_all(some.iter().map(create)).await;
        }
    }

    /// Persistent instances, one after the other: written, or deleted where there are no data.
    pub async fn write_many(&self, service: &str, all: Vec<(String, Option<Vec<u8>>)>) {
        for (id, data) in all {
            let path = format!("{ROOT}/{service}/{id}");
            let Some(data) = data else {
                self.delete(service, &id).await;
                continue;
            };
            match self.0.set_data(&path, &data, None).await {
                Ok(_) => {}
                Err(Error::NoNode) => self.write_persistent(service, &id, &data).await,
                Err(error) => panic!("{path}: {error}"),
            }
        }
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

    /// There must be no services.
    pub async fn delete_root(&self) {
        self.0.delete(ROOT, None).await.unwrap();
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
