//! The load reporting service: how many requests clients made, by service.
//!
//! It refuses to know what the figures are used for. A client is asked once for the load of every
//! cluster and reports at an interval from then on. Only clusters that are served are counted, so
//! whatever a client writes, there are never more series than three for each service; those of a
//! service that is gone go too. Source: `envoy.service.load_stats.v3`.

use std::{fmt, sync::Arc, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse,
            load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
        },
    },
    google,
};
use futures_util::{StreamExt, stream, stream::BoxStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::server::TcpConnectInfo};
use tracing::debug;

use super::{
    admission::{Admission, Seat},
    loads::Loads,
};
use crate::{
    resource::{Edition, Profile, ResourceType, Version},
    snapshot::{ResourceSet, Snapshots},
};

/// How often clients report.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// A report has an entry of some hundred bytes for each cluster that was used, and for each zone.
const REPORT_LIMIT: usize = 16 << 20;

/// A client without this feature has to be told every cluster by name.
const ALL_CLUSTERS: &str = "envoy.lrs.supports_send_all_clusters";

/// What every reporting stream shares.
#[derive(Clone)]
pub struct Lrs {
    pub snapshots: watch::Receiver<Arc<Snapshots>>,
    pub loads: Loads,
    pub admission: Admission,
    pub interval: Duration,
    /// Cancelled when the server drains.
    pub stop: CancellationToken,
}

impl Lrs {
    pub fn into_service(self) -> LoadReportingServiceServer<Self> {
        LoadReportingServiceServer::new(self).max_decoding_message_size(REPORT_LIMIT)
    }
}

#[tonic::async_trait]
impl LoadReportingService for Lrs {
    type StreamLoadStatsStream = BoxStream<'static, Result<LoadStatsResponse, Status>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let peer = request.extensions().get::<TcpConnectInfo>();
        let address = peer.and_then(TcpConnectInfo::remote_addr);
        let seat = self.admission.admit(address, &self.stop).await?;
        let reporter = Reporter {
            server: self.clone(),
            reports: request.into_inner(),
            seat,
            asked: None,
        };
        let responses = stream::try_unfold(reporter, |mut reporter| async {
            let response = reporter.next().await?;
            Ok(response.map(|response| (response, reporter)))
        });
        Ok(Response::new(responses.boxed()))
    }
}

/// One reporting stream.
struct Reporter {
    server: Lrs,
    reports: Streaming<LoadStatsRequest>,
    seat: Seat,
    asked: Option<Asked>,
}

/// What a client was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    /// The clusters as they were in this version.
    Named(Edition, Version),
}

impl Reporter {
    /// The next thing to tell the client; `None` ends the stream in order.
    async fn next(&mut self) -> Result<Option<LoadStatsResponse>, Status> {
        loop {
            let expires = self.seat.expires.into();
            tokio::select! {
                biased;
                () = self.server.stop.cancelled() => {
                    return Err(Status::unavailable("the server stops; reconnect"));
                }
                report = self.reports.message() => match report? {
                    Some(report) => {
                        if let Some(response) = self.take(&report)? {
                            return Ok(Some(response));
                        }
                    }
                    None => return Ok(None),
                },
                () = tokio::time::sleep_until(expires), if self.asked.is_some() => {
                    return Ok(None);
                }
            }
        }
    }

    fn take(&mut self, report: &LoadStatsRequest) -> Result<Option<LoadStatsResponse>, Status> {
        self.server.loads.add(&report.cluster_stats);
        let snapshots = self.server.snapshots.borrow().clone();
        let asked = match (&self.asked, &report.node) {
            (None, None) => {
                let reason = "the first message of a stream must carry `node`";
                return Err(Status::invalid_argument(reason));
            }
            (None, Some(node)) => {
                debug!(node = node.id, "a client reports load");
                ask(node, &snapshots)
            }
            (Some(Asked::All), _) => return Ok(None),
            (Some(Asked::Named(edition, _)), _) => {
                Asked::Named(*edition, clusters(*edition, &snapshots))
            }
        };
        if self.asked.as_ref() == Some(&asked) {
            return Ok(None);
        }
        let response = question(&asked, &snapshots, self.server.interval);
        self.asked = Some(asked);
        Ok(Some(response))
    }
}

fn ask(node: &Node, snapshots: &Snapshots) -> Asked {
    if node.client_features.iter().any(|f| f == ALL_CLUSTERS) {
        return Asked::All;
    }
    let profile = Profile::whole(super::request::kind_of(node));
    let edition = profile.edition(ResourceType::Cluster);
    Asked::Named(edition, clusters(edition, snapshots))
}

fn clusters(edition: Edition, snapshots: &Snapshots) -> Version {
    snapshots.of(edition).set(ResourceType::Cluster).version()
}

fn question(asked: &Asked, snapshots: &Snapshots, interval: Duration) -> LoadStatsResponse {
    let set = match asked {
        Asked::All => None,
        Asked::Named(edition, _) => Some(snapshots.of(*edition).set(ResourceType::Cluster)),
    };
    let listed = set.into_iter().flat_map(ResourceSet::iter);
    LoadStatsResponse {
        clusters: listed.map(|cluster| cluster.name.to_string()).collect(),
        send_all_clusters: *asked == Asked::All,
        load_reporting_interval: Some(google::protobuf::Duration {
            seconds: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(interval.subsec_nanos()).unwrap_or_default(),
        }),
        report_endpoint_granularity: false,
    }
}

impl fmt::Debug for Lrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lrs").finish_non_exhaustive()
    }
}
