//! A server that opens sessions, answers pings and nothing else: the client has no time-out of its
//! own for that.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use zookeeper_client::Client;

use super::{Config, Layout, Mirror, SHORT_SESSION, Status, config};

const PING: [u8; 4] = (-2_i32).to_be_bytes();

async fn frame(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_i32().await?;
    let mut frame = vec![0; usize::try_from(length).expect("a length")];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn send(stream: &mut TcpStream, frame: &[u8]) -> std::io::Result<()> {
    let length = i32::try_from(frame.len()).expect("a length");
    stream.write_i32(length).await?;
    stream.write_all(frame).await
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let connect = frame(&mut stream).await?;
    // Protocol version, time-out as asked for, session id, password, not read-only.
    let mut answer = vec![0; 4];
    answer.extend_from_slice(&connect[12..16]);
    answer.extend_from_slice(&7_i64.to_be_bytes());
    answer.extend_from_slice(&16_i32.to_be_bytes());
    answer.extend_from_slice(&[1; 16]);
    answer.push(0);
    send(&mut stream, &answer).await?;
    loop {
        if frame(&mut stream).await?.starts_with(&PING) {
            let mut pong = PING.to_vec();
            pong.extend_from_slice(&[0; 12]);
            send(&mut stream, &pong).await?;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_pings_alone_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    assert!(Client::connect(&address).await.is_ok(), "it opens sessions");
    let config = Config {
        layout: Layout::flat(),
        session_timeout: SHORT_SESSION,
        ..config(&address, "/services")
    };
    let mut mirror = Mirror::start_as(config, |watcher| watcher);
    let gives_up = |status: &Status| matches!(status, Status::Connecting { reason: Some(reason) } if reason.contains("timed out"));
    (mirror.until_state("given up", |s| gives_up(&s.status))).await;
    mirror.assert_silent();
    mirror.stop().await;
    accepting.abort();
}
