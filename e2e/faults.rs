//! Everything that breaks, broken for real, and the two promises after each: what is served is what
//! is registered, and nothing was removed in between that had not deregistered.

mod chaos;
mod drill;
mod fault;
mod stage;
mod trial;

use std::time::Duration;

use tokio::time::sleep;

use self::{fault::Fault, stage::Stage};
use crate::support::{
    dice::Dice,
    ensemble::{Ensemble, LOCAL_SESSIONS},
    proxy::Proxy,
    wait::until,
};

/// Everybody was shown something; without that no promise could have been broken.
fn assert_told(stage: &Stage, before: (usize, usize)) {
    let after = stage.told();
    assert!(
        after.0 > before.0,
        "{after:?} assignments, {before:?} before"
    );
}

/// One fault on a stage of its own, and at least one full comparison because of it.
async fn survives(fault: Fault, mut stage: Stage) -> Stage {
    let (told, resyncs) = (stage.told(), stage.resyncs().await);
    fault.strike(&mut stage, &mut Dice::new(1)).await;
    let took = stage.assert_unharmed().await;
    println!("{}: right again after {took:?}", fault.name());
    assert_told(&stage, told);
    assert!(
        stage.resyncs().await > resyncs,
        "{}",
        stage.timeline.last(40)
    );
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_under_churn_harms_nothing() {
    survives(Fault::LeaderKilled, Stage::start(3, 1).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_quorum_fails_no_request_and_removes_nothing() {
    let stage = Stage::start(3, 2).await.with_traffic().await;
    survives(Fault::QuorumLost, stage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_expired_is_replaced_and_nothing_else_changes() {
    let stage = survives(Fault::SessionExpired, Stage::start(1, 3).await).await;
    assert!(stage.meshkeeper.log().contains("the session expired"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_harms_nothing() {
    survives(Fault::Cut, Stage::start(1, 4).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_neither_answers_nor_closes_harms_nothing() {
    let mut stage = Stage::start(1, 5).await;
    let resyncs = stage.resyncs().await;
    stage.ensemble.doors().for_each(Proxy::pause);
    until("the silence is noticed", async || {
        (!stage.is_connected().await?).then_some(())
    })
    .await;
    stage.ensemble.doors().for_each(Proxy::cut);
    stage.ensemble.doors().for_each(Proxy::resume);
    stage.assert_unharmed().await;
    assert!(stage.resyncs().await > resyncs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hears_and_is_not_heard_harms_nothing() {
    let mut stage = Stage::start(1, 6).await;
    let resyncs = stage.resyncs().await;
    stage.ensemble.doors().for_each(Proxy::mute);
    until("the silence is noticed", async || {
        (!stage.is_connected().await?).then_some(())
    })
    .await;
    stage.ensemble.doors().for_each(Proxy::resume);
    stage.assert_unharmed().await;
    assert!(stage.resyncs().await > resyncs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_connection_harms_nothing() {
    survives(Fault::Slow, Stage::start(1, 7).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_flaps_harms_nothing() {
    survives(Fault::Flapping, Stage::start(1, 8).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_zookeeper_harms_nothing() {
    let ensemble = Ensemble::start_with(1, "", true).await;
    survives(Fault::DiskFull, Stage::with(ensemble, 9).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_shows_nothing_older() {
    let ensemble = Ensemble::start_with(3, LOCAL_SESSIONS, false).await;
    let mut stage = Stage::with(ensemble, 10).await;
    let (told, resyncs) = (stage.told(), stage.resyncs().await);
    let lags = until("a follower", async || stage.ensemble.follower()).await;
    stage.ensemble.door(lags).refuse();
    until("a connection to another server", async || {
        stage.is_connected().await?.then_some(())
    })
    .await;
    stage.ensemble.detach(lags);
    // What the follower will not know: it must be shown by now, or there is nothing to go back from.
    stage.settle().await.unwrap();
    sleep(Duration::from_millis(300)).await;
    for (node, door) in stage.ensemble.doors().enumerate() {
        if node == lags {
            door.resume();
        } else {
            door.refuse();
        }
    }
    sleep(Duration::from_millis(2_500)).await;
    assert!(stage.wrong().is_empty(), "{:#?}", stage.wrong());
    stage.ensemble.attach(lags);
    stage.ensemble.doors().for_each(Proxy::resume);
    stage.assert_unharmed().await;
    assert_told(&stage, told);
    assert!(stage.resyncs().await > resyncs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_at_any_moment_comes_back_with_what_is_registered() {
    let mut stage = Stage::start(1, 11).await;
    let mut dice = Dice::new(11);
    let (_, streams) = stage.told();
    for fault in [Fault::Killed, Fault::KilledLoading, Fault::KilledResyncing] {
        fault.strike(&mut stage, &mut dice).await;
        stage.assert_unharmed().await;
    }
    let (_, after) = stage.told();
    assert!(after >= streams + 6, "{after} streams, {streams} before");
}
