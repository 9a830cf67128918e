//! How many reads travel as one request.
//!
//! Bounds both directions: replies for the memory of the server and of this process, requests since a
//! server closes a connection that sends one of more than its `jute.maxbuffer` bytes. It says neither its
//! limit nor the reason, so a request that is larger than any that was answered before is suspected when the
//! connection ends with it unanswered, and the next ones are half as large. Pure.

use crate::zookeeper::tree::Request;

/// 500 at depth 4 read a server out as fast as any.
const REQUESTS: usize = 500;
/// The first batches are small, until the size of the replies is known.
const FIRST: usize = 32;
/// A quarter of the usual `jute.maxbuffer`.
const BYTES: usize = 256 * 1024;
/// What a batch of replies should not exceed.
const REPLY_BYTES: usize = 4 * 1024 * 1024;
/// No server has a smaller `jute.maxbuffer`, so a request of that many bytes is no trouble.
const HARMLESS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub requests: usize,
    pub bytes: usize,
}

impl Size {
    pub fn of(requests: &[Request]) -> Self {
        let bytes = requests.iter().map(Request::size).sum();
        let requests = requests.len();
        Self { requests, bytes }
    }
}

#[derive(Debug)]
pub(super) struct Batching {
    limit: Size,
    /// The largest request that was answered.
    answered: usize,
}

impl Default for Batching {
    fn default() -> Self {
        let limit = Size {
            requests: FIRST,
            bytes: BYTES,
        };
        Self { limit, answered: 0 }
    }
}

impl Batching {
    /// What the next batch should not exceed.
    pub fn limit(&self) -> Size {
        self.limit
    }

    /// Doubles while replies are small, and shrinks to what keeps them below the bound.
    pub fn answered(&mut self, sent: Size, reply_bytes: usize) {
        self.answered = self.answered.max(sent.bytes);
        let requests = self.limit.requests;
        self.limit.requests = if reply_bytes > REPLY_BYTES {
            (requests * REPLY_BYTES / reply_bytes).max(1)
        } else if reply_bytes > REPLY_BYTES / 4 {
            requests
        } else {
            (requests * 2).min(REQUESTS)
        };
    }

    /// The connection ended with a request of that many bytes unanswered, the largest on its way. Whether
    /// the next ones are smaller for it.
    pub fn interrupted(&mut self, bytes: usize) -> bool {
        if bytes <= HARMLESS {
            return false;
        }
        if bytes <= self.answered {
            // Such a request is no trouble, unless the limit is another by now: then it ends the next
            // connection too.
            self.answered = 0;
            return false;
        }
        self.limit.bytes = self.limit.bytes.min(bytes / 2);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(requests: usize, bytes: usize) -> Size {
        Size { requests, bytes }
    }

    #[test]
    fn batches_grow_while_replies_are_small_and_shrink_when_they_are_not() {
        for (before, reply_bytes, after) in [
            (32, 6_400, 64),
            (400, 80_000, REQUESTS),
            (500, 2 * REPLY_BYTES, 250),
            (250, REPLY_BYTES / 2, 250),
            (3, 100 * REPLY_BYTES, 1),
        ] {
            let mut batching = Batching::default();
            batching.limit.requests = before;
            batching.answered(size(1, 1), reply_bytes);
            assert_eq!(batching.limit.requests, after);
        }
    }

    #[test]
    fn requests_shrink_until_a_server_with_a_small_buffer_answers() {
        for buffer in [600, 4_096, 64 * 1024] {
            let (mut batching, mut attempts) = (Batching::default(), 0);
            loop {
                let bytes = batching.limit().bytes;
                if bytes <= buffer {
                    batching.answered(size(1, bytes), 0);
                    break;
                }
                assert!(batching.interrupted(bytes));
                attempts += 1;
            }
            assert!(attempts <= 11, "{attempts} attempts for {buffer}");
            assert!(2 * batching.limit().bytes > buffer);
        }
    }

    #[test]
    fn a_connection_that_ends_otherwise_changes_nothing() {
        let mut batching = Batching::default();
        batching.answered(size(500, 20_000), 0);
        assert!(!batching.interrupted(HARMLESS));
        assert!(!batching.interrupted(20_000));
        assert_eq!(batching.limit().bytes, BYTES);
        assert!(batching.interrupted(20_000), "a limit that came later");
        assert_eq!(batching.limit().bytes, 10_000);
    }
}
