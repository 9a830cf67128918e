//! Checks of single values: text in, a usable value or a sentence with the remedy out.
//!
//! It refuses to know where a value was written. Every message says what is wrong and what to write.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use super::LoadBalancing;
use crate::{
    registry::{
        Layout,
        format::{FormatChoice, UnknownFormat},
        shape::Network,
    },
    zookeeper::{check_connect, check_root, check_secure_connect},
};

/// A ZooKeeper server bounds what it grants to its own 2–20 ticks; beyond this nothing is sensible.
const SESSION_TIMEOUT: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(600)];

/// Below it clients do little but reconnect; over it the limit is none.
const STREAM_AGE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600)];

/// Shorter than a batch takes, or longer than anybody remembers why.
const GUARD_TIME: [Duration; 2] = [
    Duration::from_millis(100),
    Duration::from_secs(7 * 24 * 3600),
];

/// Not at all, or at most as long as requests to an instance that stopped may fail.
const LINGER: [Duration; 2] = [Duration::ZERO, Duration::from_secs(60)];

/// Clients wait as long for an answer at a start without ZooKeeper.
const STATE_WAIT: [Duration; 2] = [Duration::ZERO, Duration::from_secs(600)];

/// Shorter than what a writer can hold to is a mistake.
const TTL: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(7 * 24 * 3600)];

/// Over it nobody remembers the service.
const EMPTY_SERVICES: [Duration; 2] = [Duration::ZERO, Duration::from_secs(365 * 24 * 3600)];

/// Below it connections are opened for nearly each request.
const UPSTREAM_IDLE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(24 * 3600)];

/// Below it resolvers do little else; over it instances are looked for where they no longer are.
const REFRESH: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(24 * 3600)];

/// Over any number that one machine could bear.
const COUNT: u32 = 100_000_000;

/// Where clients connect.
pub fn xds_listen(text: &str) -> Result<SocketAddr, String> {
    listen(text, (Ipv4Addr::UNSPECIFIED, 15010).into())
}

/// Where operators and probes ask.
pub fn admin_listen(text: &str) -> Result<SocketAddr, String> {
    listen(text, (Ipv4Addr::LOCALHOST, 15014).into())
}

/// `IP:PORT` to listen at; port 0 takes a free one.
fn listen(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is no address to listen at: {}",
            shown(text),
            why_no_listen(text, example)
        )
    })
}

fn why_no_listen(text: &str, example: SocketAddr) -> String {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return format!(
            "the port is missing; write `{}`",
            SocketAddr::new(ip, example.port())
        );
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return format!("write `IP:PORT`, as in `{example}`");
    };
    if port.parse::<u16>().is_err() {
        return "the port must be a number from 0 to 65535".to_owned();
    }
    match host {
        "" => format!(
            "the IP is missing; write `0.0.0.0:{port}` for every address of this machine or \
             `127.0.0.1:{port}` for itself alone"
        ),
        "localhost" => format!("names are not looked up here; write `127.0.0.1:{port}`"),
        _ => format!("names are not looked up here; write an IP, as in `0.0.0.0:{port}`"),
    }
}

/// Where sidecars listen; a port that others are told.
pub fn outbound_listen(text: &str) -> Result<SocketAddr, String> {
    let address = listen(text, (Ipv4Addr::LOCALHOST, 15001).into())?;
    if address.port() == 0 {
        return Err(format!(
            "`{text}` has port 0, which sidecars cannot be told; write the port they shall listen at"
        ));
    }
    Ok(address)
}

/// A whole number with its unit: `500ms`, `10s`, `1m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let millis: Option<u64> = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    match (number.parse::<u64>(), millis) {
        (Ok(number), Some(millis)) => number
            .checked_mul(millis)
            .map(Duration::from_millis)
            .ok_or_else(|| format!("`{text}` is too long")),
        (Ok(_), None) if unit.is_empty() => Err(format!(
            "`{text}` has no unit; write `{text}s` for seconds or `{text}ms` for milliseconds"
        )),
        _ => Err(format!(
            "`{}` is no duration; write a whole number with ms, s, m or h, as in `10s`",
            shown(text)
        )),
    }
}

/// The shortest text that [`duration`] reads back.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if millis > 0 && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    format!("{millis}ms")
}

pub fn session_timeout(text: &str) -> Result<Duration, String> {
    duration_within(text, SESSION_TIMEOUT)
}

/// How often host names are looked up again.
pub fn refresh(text: &str) -> Result<Duration, String> {
    duration_within(text, REFRESH)
}

/// How long a stream lives.
pub fn stream_age(text: &str) -> Result<Duration, String> {
    duration_within(text, STREAM_AGE)
}

/// The window of the guard, and how long it holds.
pub fn guard_time(text: &str) -> Result<Duration, String> {
    duration_within(text, GUARD_TIME)
}

/// How long a service's last instance lingers.
pub fn linger(text: &str) -> Result<Duration, String> {
    duration_within(text, LINGER)
}

/// How long ZooKeeper may take before the state on disk is served.
pub fn state_wait(text: &str) -> Result<Duration, String> {
    duration_within(text, STATE_WAIT)
}

/// A share of a whole: over 0, and 1 at most.
pub fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok();
    share.filter(|share| *share > 0.0 && *share <= 1.0).ok_or_else(|| {
        format!(
            "`{}` is no share; write a number over 0 and up to 1, as in `0.5` for half of them; 1 is \
             never exceeded",
            shown(text)
        )
    })
}

/// A directory, which need not exist yet.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err(format!(
            "`{}` is no directory; write a path, as in `/var/lib/meshkeeper`",
            shown(text)
        ));
    }
    Ok(text.into())
}

fn duration_within(text: &str, [least, most]: [Duration; 2]) -> Result<Duration, String> {
    let duration = duration(text)?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    Err(format!(
        "`{text}` is out of range; write something from {} to {}",
        duration_text(least),
        duration_text(most)
    ))
}

/// How many of something there may be.
pub fn count<T: TryFrom<u32>>(text: &str) -> Result<T, String> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let number = text.parse::<u32>().ok().filter(|n| digits && *n <= COUNT);
    let count = number.filter(|n| *n > 0).and_then(|n| T::try_from(n).ok());
    count.ok_or_else(|| {
        format!(
            "`{}` is no count; write a whole number from 1 to {COUNT}",
            shown(text)
        )
    })
}

/// How many of something something has to have; 0 for never.
pub fn threshold(text: &str) -> Result<usize, String> {
    match text {
        "0" => Ok(0),
        _ => count(text).map_err(|problem| problem.replace("from 1", "from 0")),
    }
}

/// A registry's name: it stands in metrics and addresses.
pub fn registry_name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&text.len()) && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{}` is no name; write 1 to 63 letters, digits, `-`, `_` or `.`",
        shown(text)
    ))
}

/// Of one request; Envoy's upper bounds.
pub fn max_headers(text: &str) -> Result<u32, String> {
    number_within(text, 1..=10_000)
}

pub fn max_header_kib(text: &str) -> Result<u32, String> {
    number_within(text, 1..=8_192)
}

fn number_within(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        format!(
            "`{}` is no such number; write a whole number from {} to {}",
            shown(text),
            range.start(),
            range.end()
        )
    })
}

/// A host name; empty for none.
pub fn default_host(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() <= 253 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{}` is no host name; write the name of a service, as in `orders`",
        shown(text)
    ))
}

/// Where services and instances stand.
pub fn layout(text: &str) -> Result<Option<Layout>, String> {
    let layout = text.parse::<Layout>();
    layout.map(Some).map_err(|error| error.to_string())
}

/// 0 is the first choice.
pub fn priority(text: &str) -> Result<u8, String> {
    let number = text.parse().ok().filter(|n| *n <= 15);
    number.ok_or_else(|| {
        format!(
            "`{}` is no priority; write a whole number from 0, the first choice, to 15",
            shown(text)
        )
    })
}

/// How long a service without instances is rendered; 0 for ever.
pub fn empty_services(text: &str) -> Result<Duration, String> {
    duration_within(text, EMPTY_SERVICES)
}

/// How long an unused connection to an instance stays open.
pub fn upstream_idle_timeout(text: &str) -> Result<Duration, String> {
    duration_within(text, UPSTREAM_IDLE)
}

/// How long a registration lives that nobody writes again.
pub fn ttl(text: &str) -> Result<Option<Duration>, String> {
    duration_within(text, TTL).map(Some)
}

/// A text in which `*` stands for any other.
pub fn pattern(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("is empty; write a text, with `*` for what may stand there".to_owned());
    }
    Ok(text.to_owned())
}

/// A host name, in which `*` stands for any text, or an IP; in lower case and without a port.
pub fn admin_host(text: &str) -> Result<String, String> {
    let host = text.trim().trim_end_matches('.').to_ascii_lowercase();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Ok(ip) = bare.unwrap_or(&host).parse::<IpAddr>() {
        return Ok(ip.to_canonical().to_string());
    }
    let usual = |c: char| c.is_ascii_alphanumeric() || "-._*".contains(c);
    if host.is_empty() || !host.chars().all(usual) {
        return Err(format!(
            "`{}` is not a host; write a name or an IP without scheme and port, as in `mesh.example` or `*.mesh.svc`",
            shown(text)
        ));
    }
    Ok(host)
}

/// `10.0.0.0/8`, or one address.
pub fn network(text: &str) -> Result<String, String> {
    match text.parse::<Network>() {
        Ok(_) => Ok(text.to_owned()),
        Err(()) => Err(format!(
            "`{}` is no network; write one like `10.0.0.0/8` or `2001:db8::/32`",
            shown(text)
        )),
    }
}

/// `host:port[,host:port…][/chroot]`.
pub fn connect(text: &str) -> Result<String, String> {
    check_connect(text)?;
    Ok(text.to_owned())
}

/// As [`connect`], where the servers have certificates.
pub fn secure_connect(text: &str) -> Result<String, String> {
    check_secure_connect(text)?;
    Ok(text.to_owned())
}

/// Who logs in; a colon ends it on the wire.
pub fn user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c == ':' || c.is_control()) {
        return Err(format!(
            "`{}` is no user; write a name without a colon",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

/// Of a file that is read where the server runs.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is no path; write that of a file".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// The name of an environment variable.
pub fn variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['=', '\0']) {
        return Err(format!(
            "`{}` is no name of an environment variable; write one, as in `ZOOKEEPER_PASSWORD`",
            shown(text)
        ));
    }
    Ok(text.to_owned())
}

/// A host's name or IP (an IPv6 one in brackets) and its port; messages show `usual` as the port.
pub fn host_port(text: &str, usual: u16) -> Result<(String, u16), String> {
    let wrong = |why: &str| Err(format!("`{}` is no HOST:PORT: {why}", shown(text)));
    let as_in = |why: &str| wrong(&format!("{why}; write as in `127.0.0.1:{usual}`"));
    if text.is_empty() {
        return as_in("it is empty");
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return as_in("the port is missing");
    };
    let port = match port.parse::<u16>() {
        Ok(parsed) if parsed > 0 && port.starts_with(|c: char| c.is_ascii_digit()) => parsed,
        _ => return wrong("the port must be a number from 1 to 65535"),
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match bracketed {
        Some(ip) if ip.parse::<std::net::Ipv6Addr>().is_ok() => Ok((host.to_owned(), port)),
        None if host.contains(':') => {
            wrong(&format!("put an IPv6 address in brackets: `[::1]:{usual}`"))
        }
        None if !host.is_empty() && host.len() <= 253 && host.chars().all(good) => {
            Ok((host.to_owned(), port))
        }
        _ => wrong("the host must be a name or an IP"),
    }
}

/// The path of the znode that holds the services.
pub fn root(text: &str) -> Result<String, String> {
    check_root(text)?;
    Ok(text.to_owned())
}

pub fn format(text: &str) -> Result<FormatChoice, String> {
    text.parse()
        .map_err(|error: UnknownFormat| error.to_string())
}

/// A DNS name that services are also found under; empty for none.
pub fn domain_suffix(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.is_empty() || (text.len() <= 200 && text.split('.').all(label)) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{}` is no domain; write lower-case labels joined by dots, as in `mesh` or `svc.example`",
        shown(text)
    ))
}

pub fn load_balancing(text: &str) -> Result<LoadBalancing, String> {
    match text {
        "weightedRandom" => Ok(LoadBalancing::WeightedRandom),
        _ => Err(format!(
            "`{}` is no way to balance; write `weightedRandom`",
            shown(text)
        )),
    }
}

/// A value in a message: on one line, without what a terminal would obey, and not endless.
fn shown(text: &str) -> impl Display {
    const MOST: usize = 80;
    let mut shown: String = text.chars().take(MOST).collect::<String>();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units_and_written_back() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1m", 60_000),
            ("2h", 7_200_000),
            ("90s", 90_000),
            ("0ms", 0),
        ] {
            let duration = duration(text).unwrap();
            assert_eq!(duration, Duration::from_millis(millis));
            assert_eq!(duration_text(duration), text);
        }
    }

    #[test]
    fn durations_without_unit_or_number_are_refused() {
        for text in [
            "10",
            "s",
            "",
            "-1s",
            "1.5s",
            "10 s",
            "1d",
            "10ß",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(
            duration("18446744073709551615h")
                .unwrap_err()
                .contains("too long")
        );
        assert!(duration("10").unwrap_err().contains("`10s`"));
    }

    #[test]
    fn session_timeouts_are_bounded() {
        assert!(session_timeout("10s").is_ok());
        assert!(session_timeout("1ms").unwrap_err().contains("100ms to 10m"));
        assert!(session_timeout("1h").is_err());
    }

    #[test]
    fn counts_and_ages_are_bounded() {
        assert_eq!(count::<usize>("20000"), Ok(20_000));
        assert_eq!(count::<u32>("1"), Ok(1));
        for text in [
            "0",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "20_000",
            "",
            "many",
            "4294967296",
        ] {
            assert!(
                count::<usize>(text)
                    .unwrap_err()
                    .contains("from 1 to 100000000"),
                "{text}"
            );
        }
        assert_eq!(stream_age("30m"), Ok(Duration::from_secs(1800)));
        assert!(stream_age("0s").unwrap_err().contains("1s to 168h"));
        assert!(stream_age("8760h").is_err());
    }

    #[test]
    fn listen_addresses_name_an_ip_and_a_port() {
        assert!(xds_listen("0.0.0.0:15010").is_ok());
        assert!(xds_listen("[::]:0").is_ok());
        for (text, remedy) in [
            (":15010", "`0.0.0.0:15010`"),
            ("localhost:15014", "`127.0.0.1:15014`"),
            ("example.com:1", "an IP"),
            ("127.0.0.1", "`127.0.0.1:15010`"),
            ("::1", "`[::1]:15010`"),
            ("127.0.0.1:70000", "65535"),
            ("nonsense", "IP:PORT"),
        ] {
            let message = xds_listen(text).unwrap_err();
            assert!(message.contains(remedy), "{message}");
        }
        assert!(outbound_listen("127.0.0.1:0").is_err());
    }

    #[test]
    fn a_host_and_port_are_a_name_or_an_ip_and_a_number() {
        for text in ["127.0.0.1:2181", "zk-0.zk.default.svc:1", "[::1]:65535"] {
            assert!(host_port(text, 15010).is_ok(), "{text}");
        }
        for text in [
            "", "a", "a:", "a:0", "a:99999", ":1", "::1:1", "a b:1", "a:1/", "a:+1", "[a]:1",
        ] {
            assert!(host_port(text, 15010).is_err(), "{text}");
        }
    }

    #[test]
    fn examples_in_messages_fit_what_is_asked_for() {
        let told = [
            (xds_listen("x").unwrap_err(), "`0.0.0.0:15010`"),
            (admin_listen("x").unwrap_err(), "`127.0.0.1:15014`"),
            (admin_listen("10.0.0.7").unwrap_err(), "`10.0.0.7:15014`"),
            (outbound_listen("x").unwrap_err(), "`127.0.0.1:15001`"),
            (host_port("", 15014).unwrap_err(), "`127.0.0.1:15014`"),
            (host_port("x", 15010).unwrap_err(), "`127.0.0.1:15010`"),
            (host_port("::1:1", 15010).unwrap_err(), "`[::1]:15010`"),
        ];
        for (message, example) in told {
            assert!(message.contains(example), "{message}");
        }
    }

    #[test]
    fn an_unknown_format_is_told_with_the_known_ones() {
        assert!(format("nerve").is_ok());
        let told = format("xml").unwrap_err();
        assert!(told.contains("auto, plain, curator, dubbo"), "{told}");
    }

    #[test]
    fn suffixes_are_lower_case_domains() {
        assert!(domain_suffix("svc.example").is_ok());
        assert!(domain_suffix("").is_ok());
        for text in ["Mesh", "a..b", "-a", "a.", ".a", "ü"] {
            assert!(domain_suffix(text).is_err(), "{text}");
        }
    }

    #[test]
    fn messages_stay_on_one_line_and_short() {
        let message = domain_suffix(&"\u{1b}[31m\n".repeat(1_000)).unwrap_err();
        assert!(!message.contains(char::is_control), "{message:?}");
        assert!(message.len() < 2_000);
    }
}
