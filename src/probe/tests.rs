use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use super::*;

const IPS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

#[tokio::test]
async fn an_address_without_a_listener_refuses() {
    for ip in IPS {
        let listener = TcpListener::bind(ip).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(probe(address).await, Answer::Refused, "{address}");
    }
}

#[tokio::test]
async fn a_listener_accepts_and_receives_no_byte() {
    for ip in IPS {
        let listener = TcpListener::bind(ip).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let (answer, bytes) = tokio::join!(probe(address), accepted);
        assert_eq!((answer, bytes), (Answer::Accepted, Vec::new()));
    }
}

#[tokio::test]
async fn a_listener_whose_backlog_is_full_does_not_refuse() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let attempt = || timeout(Duration::from_millis(200), TcpStream::connect(address));
    while let Ok(connected) = attempt().await {
        waiting.push(connected.unwrap());
        assert!(waiting.len() < 10, "the backlog does not fill");
    }
    assert_eq!(probe(address).await, Answer::None);
}

#[tokio::test]
async fn an_address_that_this_machine_cannot_connect_to_does_not_refuse() {
    let broadcast = "255.255.255.255:80".parse().unwrap();
    assert_eq!(probe(broadcast).await, Answer::None);
}

#[tokio::test]
async fn refused_addresses_are_reported_together_though_others_never_answer() {
    let address = |n: u8| SocketAddr::from(([10, 0, 0, n], 80));
    let all: OrdSet<_> = (0..200).map(address).collect();
    let (wanted, receiver) = watch::channel(all);
    let (sender, mut reports) = mpsc::channel(1);
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    // Every second address is in a network that drops packets.
    let answer = |address: SocketAddr| {
        async move {
            let SocketAddr::V4(of) = address else {
                return Answer::None;
            };
            let [.., last] = of.ip().octets();
            if last & 1 == 0 {
                return Answer::Refused;
            }
            std::future::pending().await
        }
        .boxed()
    };
    let prober = Prober {
        // Nine of ten slots are lost to addresses that never answer.
        schedule: Schedule::new(110),
        probe: answer,
        metrics,
        refused: Vec::new(),
        report_at: None,
        unlogged: 0,
        log_at: None,
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(prober.run(receiver, sender, stop.clone()));
    let (mut reported, mut count) = (OrdSet::new(), 0);
    while reported.len() < 100 {
        let refused = reports.recv().await.unwrap();
        count += 1;
        reported.extend(refused.iter().copied());
        wanted.send_modify(|wanted| {
            for address in &refused {
                wanted.remove(address);
            }
        });
    }
    assert!(count < 50, "{count} reports");
    let odd = |address: &SocketAddr| {
        address
            .ip()
            .to_string()
            .ends_with(['1', '3', '5', '7', '9'])
    };
    assert!(!reported.iter().any(odd));
    stop.cancel();
    running.await.unwrap();
}
