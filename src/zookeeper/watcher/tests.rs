use super::*;
use crate::{
    registry::Layout,
    zookeeper::{Security, Status, tree::Reply},
};

fn watcher() -> Watcher {
    let config = Config {
        name: "main".to_owned(),
        connect: "127.0.0.1:2181".to_owned(),
        connect_key: "registries[0].connect".to_owned(),
        root: "/services".to_owned(),
        layout: Layout::flat(),
        session_timeout: REQUEST,
        security: Security::default(),
    };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let (state, _) = watch::channel(State {
        loaded: true,
        status: Status::Loading,
        since: Instant::now(),
    });
    Watcher::new(config, &metrics, mpsc::channel(1).0, state).unwrap()
}

#[test]
fn a_load_that_was_finished_before_the_loss_is_told_before_it() {
    let told = |watcher: &mut Watcher| {
        let batch = watcher.take();
        (batch.complete, batch.stale)
    };
    for lost_since in [true, false] {
        let mut watcher = watcher();
        watcher.tree.connected(Watches::OneShot);
        for request in watcher.tree.requests(1, usize::MAX) {
            watcher.tree.reply(request, Reply::Children(Vec::new()));
        }
        // The registry was too busy to hear of it.
        watcher.stale = true;
        watcher.give_up = lost_since.then(Instant::now);
        assert_eq!(told(&mut watcher), (true, !lost_since));
        assert_eq!(told(&mut watcher), (false, lost_since));
    }
}
