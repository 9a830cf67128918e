//! Znodes whose rights keep us out.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_read_harms_nothing_else() {
    let server = ZooKeeper::start();
    let client = server.client().await;
    client.auth("digest", b"owner:secret").await.unwrap();
    let private = CreateMode::Persistent.with_acls(Acls::creator_all());
    put(&client, "/services/orders/i-1", b"1").await;
    (client.create("/services/orders/i-2", b"2", &private).await).unwrap();
    client
        .create("/services/vault", b"", &private)
        .await
        .unwrap();
    client.create("/hidden", b"", &private).await.unwrap();

    let proxy = Proxy::start(server.port()).await;
    for how in [Mirror::start, Mirror::start_one_shot] {
        let mut mirror = how(&proxy.connect(), "/services");
        mirror.until("loaded", |m| m.completed == 1).await;
        let expected = znodes(&[("orders", ""), ("orders/i-1", "1")]);
        assert_eq!(mirror.znodes, expected);
        assert_eq!(
            mirror.unreadable,
            ["orders/i-2", "vault"].map(String::from).into()
        );

        // What is closed later stands as it was, and is told as soon as it is looked at, as no watch
        // tells of rights or of what may not be read; what is opened is read.
        let path = "/services/orders/i-1";
        let (open, _) = client.get_acl(path).await.unwrap();
        let (closed, _) = client.get_acl("/services/vault").await.unwrap();
        client.set_acl(path, &closed, None).await.unwrap();
        client.set_data(path, b"hidden", None).await.unwrap();
        proxy.cut();
        mirror.until("compared again", |m| m.completed == 2).await;
        assert!(mirror.unreadable.contains("orders/i-1"));
        assert_eq!(mirror.znodes, expected);
        client.set_acl(path, &open, None).await.unwrap();
        client.set_data(path, b"1", None).await.unwrap();
        mirror.unreadable.clear();
        proxy.cut();
        mirror.until("compared again", |m| m.completed == 3).await;
        assert_eq!(mirror.znodes["orders/i-1"], "1");
        assert!(mirror.unreadable.is_empty() && mirror.deleted.is_empty());
        mirror.stop().await;

        let mut denied = how(&server.connect(), "/hidden");
        let told = |s: &State| s.status.to_string().contains("may not list /hidden");
        denied.until_state("a reason", told).await;
        denied.stop().await;
    }
}
