//! What breaks, each for real: it is broken, stays so for a while that the dice tell, and is mended.

use std::time::Duration;

use tokio::time::sleep;

use super::stage::{SESSION, Stage};
use crate::support::{dice::Dice, proxy::Proxy, wait::until};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    LeaderKilled,
    FollowerKilled,
    QuorumLost,
    EnsembleKilled,
    FollowerLags,
    DiskFull,
    SessionExpired,
    Cut,
    HalfOpen,
    Muted,
    Slow,
    Flapping,
    Killed,
    KilledLoading,
    KilledResyncing,
}

impl Fault {
    pub const ALL: [Self; 15] = [
        Self::LeaderKilled,
        Self::FollowerKilled,
        Self::QuorumLost,
        Self::EnsembleKilled,
        Self::FollowerLags,
        Self::DiskFull,
        Self::SessionExpired,
        Self::Cut,
        Self::HalfOpen,
        Self::Muted,
        Self::Slow,
        Self::Flapping,
        Self::Killed,
        Self::KilledLoading,
        Self::KilledResyncing,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::LeaderKilled => "leader killed",
            Self::FollowerKilled => "follower killed",
            Self::QuorumLost => "quorum lost",
            Self::EnsembleKilled => "all servers killed",
            Self::FollowerLags => "follower lags",
            Self::DiskFull => "disks full",
            Self::SessionExpired => "session expired",
            Self::Cut => "connection cut",
            Self::HalfOpen => "connection half-open",
            Self::Muted => "one direction dead",
            Self::Slow => "connection slow",
            Self::Flapping => "connection flaps",
            Self::Killed => "MeshKeeper killed",
            Self::KilledLoading => "… while it loads",
            Self::KilledResyncing => "… while it resyncs",
        }
    }

    /// Whether it leaves the way between MeshKeeper and ZooKeeper alone, so that this can be bad too.
    fn spares_doors(self) -> bool {
        match self {
            Self::LeaderKilled
            | Self::FollowerKilled
            | Self::QuorumLost
            | Self::EnsembleKilled
            | Self::DiskFull
            | Self::SessionExpired
            | Self::Killed
            | Self::KilledLoading => true,
            Self::FollowerLags
            | Self::Cut
            | Self::HalfOpen
            | Self::Muted
            | Self::Slow
            | Self::Flapping
            | Self::KilledResyncing => false,
        }
    }

    /// Returns when all parts run and pass again; what they make of it is another matter.
    pub async fn strike(self, stage: &mut Stage, dice: &mut Dice) {
        stage.timeline.note(&format!("{} begins", self.name()));
        let two_at_once = self.spares_doors() && dice.below(3) == 0;
        if two_at_once {
            slow_down(stage, dice);
        }
        self.strike_alone(stage, dice).await;
        if two_at_once {
            stage.ensemble.doors().for_each(Proxy::resume);
        }
        stage.timeline.note(&format!("{} is over", self.name()));
    }

    async fn strike_alone(self, stage: &mut Stage, dice: &mut Dice) {
        match self {
            Self::LeaderKilled => {
                let leader = until("a leader", async || stage.ensemble.leader()).await;
                servers_die(stage, &[leader], dice.millis(0..1_500)).await;
            }
            Self::FollowerKilled => {
                let follower = until("a follower", async || stage.ensemble.follower()).await;
                servers_die(stage, &[follower], dice.millis(0..1_500)).await;
            }
            Self::QuorumLost => {
                let size = stage.ensemble.size();
                let survivor = dice.below(size);
                let others: Vec<_> = (0..size).filter(|node| *node != survivor).collect();
                servers_die(stage, &others, dice.millis(1_500..4_000)).await;
            }
            Self::EnsembleKilled => {
                let all: Vec<_> = (0..stage.ensemble.size()).collect();
                servers_die(stage, &all, dice.millis(0..2_000)).await;
            }
            Self::FollowerLags => follower_lags(stage, dice).await,
            Self::DiskFull => disks_get_full(stage, dice).await,
            Self::SessionExpired => {
                stage.meshkeeper.freeze().await;
                sleep(SESSION + dice.millis(800..1_500)).await;
                stage.meshkeeper.wake().await;
            }
            Self::Cut => cut(stage, dice).await,
            Self::HalfOpen => {
                stage.ensemble.doors().for_each(Proxy::pause);
                sleep(dice.millis(500..5_000)).await;
                // Both ends hear of it at last.
                stage.ensemble.doors().for_each(Proxy::cut);
                stage.ensemble.doors().for_each(Proxy::resume);
            }
            Self::Muted => {
                stage.ensemble.doors().for_each(Proxy::mute);
                sleep(dice.millis(500..5_000)).await;
                stage.ensemble.doors().for_each(Proxy::resume);
            }
            Self::Slow => slow(stage, dice).await,
            Self::Flapping => flap(stage, dice).await,
            Self::Killed => {
                stage.meshkeeper.kill().await;
                sleep(dice.millis(0..1_000)).await;
                stage.meshkeeper.restart().await;
            }
            Self::KilledLoading => killed_loading(stage, dice).await,
            Self::KilledResyncing => {
                stage.ensemble.doors().for_each(Proxy::cut);
                sleep(dice.millis(0..200)).await;
                stage.meshkeeper.kill().await;
                stage.meshkeeper.restart().await;
            }
        }
    }
}

async fn servers_die(stage: &mut Stage, nodes: &[usize], stay_so: Duration) {
    for node in nodes {
        stage.ensemble.kill(*node);
    }
    stage.timeline.note(&format!("servers {nodes:?} are dead"));
    sleep(stay_so).await;
    stage.ensemble.start_all();
    stage.ensemble.until_serving().await;
}

/// The only server that can be reached is one that does not know the latest.
async fn follower_lags(stage: &mut Stage, dice: &mut Dice) {
    let lags = until("a follower", async || stage.ensemble.follower()).await;
    stage.ensemble.door(lags).refuse();
    until("a connection to another server", async || {
        stage.is_connected().await?.then_some(())
    })
    .await;
    stage.ensemble.detach(lags);
    sleep(dice.millis(300..1_000)).await;
    for (node, door) in stage.ensemble.doors().enumerate() {
        if node == lags {
            door.resume();
        } else {
            door.refuse();
        }
    }
    stage
        .timeline
        .note(&format!("only server {lags} is left, which lags"));
    sleep(dice.millis(500..2_000)).await;
    stage.ensemble.attach(lags);
    sleep(dice.millis(0..1_000)).await;
    stage.ensemble.doors().for_each(Proxy::resume);
    stage.ensemble.until_serving().await;
}

/// Each server stops when it can write no more, and is started again once there is room.
async fn disks_get_full(stage: &mut Stage, dice: &mut Dice) {
    stage.ensemble.fill_disks();
    until("nobody serves without a disk", async || {
        (stage.ensemble.leader().is_none()).then_some(())
    })
    .await;
    stage.timeline.note("no server can write any more");
    sleep(dice.millis(0..1_500)).await;
    stage.ensemble.free_disks();
    stage.ensemble.until_serving().await;
}

async fn cut(stage: &mut Stage, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        stage.ensemble.doors().for_each(Proxy::cut);
        sleep(dice.millis(0..400)).await;
    }
}

/// A full comparison has to go through it too.
async fn slow(stage: &mut Stage, dice: &mut Dice) {
    slow_down(stage, dice);
    stage.ensemble.doors().for_each(Proxy::cut);
    sleep(dice.millis(1_000..4_000)).await;
    stage.ensemble.doors().for_each(Proxy::resume);
}

fn slow_down(stage: &Stage, dice: &mut Dice) {
    let latency = dice.millis(5..60);
    let pace = 50_000 + u32::try_from(dice.below(200_000)).unwrap();
    let note = format!("the way to ZooKeeper is slow: {pace} bytes/s, {latency:?}");
    stage.timeline.note(&note);
    for door in stage.ensemble.doors() {
        door.slow(pace, latency);
    }
}

async fn flap(stage: &mut Stage, dice: &mut Dice) {
    for _ in 0..4 + dice.below(6) {
        stage.ensemble.doors().for_each(Proxy::refuse);
        sleep(dice.millis(20..300)).await;
        stage.ensemble.doors().for_each(Proxy::resume);
        sleep(dice.millis(20..500)).await;
    }
}

async fn killed_loading(stage: &mut Stage, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        stage.meshkeeper.kill().await;
        stage.meshkeeper.spawn_again();
        sleep(dice.millis(0..300)).await;
    }
    stage.meshkeeper.kill().await;
    stage.meshkeeper.restart().await;
}
