//! One gRPC stream on a connection of its own, as bytes in and bytes out.
//!
//! It refuses to know sockets, discovery and time. A load client that is slower than the server it
//! drives measures itself, so this is the least of HTTP/2 that a server accepts: what comes is never
//! decompressed (one stream, whose headers say nothing new), and windows are so large that they are
//! seldom opened again. Invariant: whole messages come out in the order in which they were sent.
//! Source: RFC 9113, RFC 7541, and gRPC over HTTP/2.

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STREAM: u32 = 1;
const HEAD: usize = 9;
/// The largest frame that a peer must take unless it says otherwise.
const FRAME: usize = 16_384;
const WINDOW: u32 = 0x7fff_ffff;
/// The window that both sides start with.
const FIRST_WINDOW: i64 = 65_535;
/// How much may come before the windows are opened again.
const REOPEN: u32 = 1 << 24;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

const INITIAL_WINDOW_SIZE: u16 = 4;

/// The client's side of a stream.
#[derive(Debug)]
pub struct Connection {
    /// What is to be written to the socket.
    pub output: Vec<u8>,
    pub ended: bool,
    input: Vec<u8>,
    body: Vec<u8>,
    /// Request bytes that the peer has no window for yet.
    queued: Vec<u8>,
    shared_window: i64,
    stream_window: i64,
    peer_initial: i64,
    unacknowledged: u32,
}

impl Connection {
    /// Asks for a method; `path` and `authority` are shorter than 127 bytes.
    pub fn open(authority: &str, path: &str) -> Self {
        let mut connection = Self {
            output: PREFACE.to_vec(),
            ended: false,
            input: Vec::new(),
            body: Vec::new(),
            queued: Vec::new(),
            shared_window: FIRST_WINDOW,
            stream_window: FIRST_WINDOW,
            peer_initial: FIRST_WINDOW,
            unacknowledged: 0,
        };
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend(WINDOW.to_be_bytes());
        connection.frame(kind::SETTINGS, 0, 0, &settings);
        let more = WINDOW - 65_535;
        connection.frame(kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        let headers = headers(authority, path);
        connection.frame(kind::HEADERS, END_HEADERS, STREAM, &headers);
        connection
    }

    pub fn send(&mut self, message: &[u8]) {
        self.queued.push(0);
        self.queued.extend(length(message).to_be_bytes());
        self.queued.extend(message);
        self.flush();
    }

    /// Takes what the socket gave.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while rest.len() >= HEAD {
            let length =
                usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
            let Some(payload) = rest.get(HEAD..HEAD + length) else {
                break;
            };
            self.take(rest[3], rest[4], number(&rest[5..]) & WINDOW, payload);
            rest = &rest[HEAD + length..];
        }
        self.input = kept(input.len() - rest.len(), input);
        if self.unacknowledged > REOPEN {
            let increment = std::mem::take(&mut self.unacknowledged).to_be_bytes();
            self.frame(kind::WINDOW_UPDATE, 0, 0, &increment);
            self.frame(kind::WINDOW_UPDATE, 0, STREAM, &increment);
        }
    }

    /// Gives every whole message, and sends what is returned for it.
    pub fn messages(&mut self, mut on: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
        let body = std::mem::take(&mut self.body);
        let mut rest = &body[..];
        while rest.len() >= 5 {
            let length = number(&rest[1..]) as usize;
            let Some(message) = rest.get(5..5 + length) else {
                break;
            };
            if let Some(reply) = on(message) {
                self.send(&reply);
            }
            rest = &rest[5 + length..];
        }
        self.body = kept(body.len() - rest.len(), body);
    }

    fn take(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        match kind {
            kind::DATA => {
                self.unacknowledged += length(payload);
                self.body.extend_from_slice(unpadded(flags, payload));
            }
            kind::SETTINGS if flags & ACK == 0 => self.settings(payload),
            kind::PING if flags & ACK == 0 => self.frame(kind::PING, ACK, 0, payload),
            kind::WINDOW_UPDATE if stream == 0 => {
                self.shared_window += i64::from(number(payload));
            }
            kind::WINDOW_UPDATE => self.stream_window += i64::from(number(payload)),
            kind::RST_STREAM | kind::GOAWAY => self.ended = true,
            _ => {}
        }
        if matches!(kind, kind::DATA | kind::HEADERS) && flags & END_STREAM != 0 {
            self.ended = true;
        }
        if !self.queued.is_empty() {
            self.flush();
        }
    }

    fn settings(&mut self, payload: &[u8]) {
        for setting in payload.chunks_exact(6) {
            if setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes() {
                let initial = i64::from(number(&setting[2..]));
                self.stream_window += initial - self.peer_initial;
                self.peer_initial = initial;
            }
        }
        self.frame(kind::SETTINGS, ACK, 0, &[]);
    }

    /// Sends as much of the requests as the windows allow.
    fn flush(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        let mut rest = &queued[..];
        while !rest.is_empty() {
            let window = self.shared_window.min(self.stream_window);
            let room = usize::try_from(window)
                .unwrap_or(0)
                .min(FRAME)
                .min(rest.len());
            if room == 0 {
                break;
            }
            self.frame(kind::DATA, 0, STREAM, &rest[..room]);
            self.shared_window -= i64::from(length(&rest[..room]));
            self.stream_window -= i64::from(length(&rest[..room]));
            rest = &rest[room..];
        }
        self.queued = kept(queued.len() - rest.len(), queued);
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.output.extend(&length(payload).to_be_bytes()[1..]);
        self.output.extend([kind, flags]);
        self.output.extend(stream.to_be_bytes());
        self.output.extend(payload);
    }
}

/// Literals that no table needs to be kept for, names and values uncompressed.
fn headers(authority: &str, path: &str) -> Vec<u8> {
    const METHOD_POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    let mut block = vec![METHOD_POST, SCHEME_HTTP];
    let authority_name: &[u8] = &[0x01];
    let path_name: &[u8] = &[0x04];
    let content_type_name: &[u8] = &[0x0f, 0x10];
    let te_name: &[u8] = &[0x00, 2, b't', b'e'];
    for (name, value) in [
        (path_name, path),
        (authority_name, authority),
        (content_type_name, "application/grpc"),
        (te_name, "trailers"),
    ] {
        block.extend(name);
        block.push(u8::try_from(value.len()).expect("a short value"));
        block.extend(value.as_bytes());
    }
    block
}

fn unpadded(flags: u8, payload: &[u8]) -> &[u8] {
    if flags & PADDED == 0 {
        return payload;
    }
    &payload[1..payload.len() - usize::from(payload[0])]
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("less than 4 GiB")
}

/// The bytes from `start` on; a large buffer is given back once it is empty, as there are thousands.
fn kept(start: usize, mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.drain(..start);
    if buffer.is_empty() && buffer.capacity() > FRAME {
        return Vec::new();
    }
    buffer
}
