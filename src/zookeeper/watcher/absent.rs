//! What stands where a root was expected that does not exist: a misspelled root is the usual reason.
//!
//! One look down from the ensemble's own root, a list for each level. It sets no watch.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::timeout;
use zookeeper_client::{Client, Error};

/// How long the look may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many znodes are named.
const NAMED: usize = 5;
const UNKNOWN: &str = "what is there instead is not known";
/// Names that differ in that share of their letters at most are likely misspelled.
const ALIKE: f64 = 0.6;

/// What there is instead, as the second half of a sentence: `there is …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Beside(String);

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `root` with the chroot.
pub(super) fn look(client: Arc<Client>, root: String) -> BoxFuture<'static, Beside> {
    async move {
        let whole = Client::clone(&client);
        let whole = whole.chroot("/").unwrap_or_else(|client| client);
        let looked = timeout(PATIENCE, descend(&whole, &root)).await;
        Beside(looked.ok().flatten().unwrap_or_else(|| UNKNOWN.to_owned()))
    }
    .boxed()
}

/// `None` if the root was created meanwhile, or cannot be looked for.
async fn descend(client: &Client, root: &str) -> Option<String> {
    let mut at = String::from("/");
    for name in root.split('/').filter(|name| !name.is_empty()) {
        let names = match client.list_children(&at).await {
            Ok(names) => names,
            Err(Error::NoAuth) => return Some(format!("`{at}` may not be listed")),
            Err(_) => return None,
        };
        if !names.iter().any(|child| child == name) {
            let there = there(&at, name, names);
            let path = below(&at, name);
            return Some(if path == root {
                there
            } else {
                format!("`{path}` does not exist either; {there}")
            });
        }
        at = below(&at, name);
    }
    None
}

fn there(parent: &str, missing: &str, mut names: Vec<String>) -> String {
    names.retain(|name| parent != "/" || name != "zookeeper");
    names.sort_unstable();
    let alike = names
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(missing, name), name))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match alike {
        None => format!("`{parent}` is empty"),
        Some((likeness, name)) if likeness >= ALIKE => {
            format!("there is `{}`", below(parent, name))
        }
        Some(_) => {
            let shown: Vec<_> = (names.iter().take(NAMED))
                .map(|name| format!("`{}`", below(parent, name)))
                .collect();
            let more = match names.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("there is {}{more}", shown.join(", "))
        }
    }
}

fn below(parent: &str, name: &str) -> String {
    format!("{}/{name}", parent.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beside_a_missing_znode_is_named() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        for (parent, missing, beside, says) in [
            (
                "/",
                "servcies",
                &["zookeeper", "dubbo", "services"][..],
                "there is `/services`",
            ),
            (
                "/mesh",
                "services",
                &["b", "a"],
                "there is `/mesh/a`, `/mesh/b`",
            ),
            ("/", "services", &["zookeeper"], "`/` is empty"),
            (
                "/",
                "services",
                &["a", "b", "c", "d", "e", "f", "g"],
                "there is `/a`, `/b`, `/c`, `/d`, `/e` and 2 more",
            ),
        ] {
            assert_eq!(there(parent, missing, names(beside)), says);
        }
    }
}
