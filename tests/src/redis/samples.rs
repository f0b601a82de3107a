//! One key of every kind Redis 7.0 knows: types, encodings, sizes, expiries, and keys that are encoded themselves.

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, Pipeline};
use anyhow::{Context, Result};

use crate::{noise::Noise, servers};

/// Function libraries that go with the samples; servers before 7.0 know none.
pub fn functions() -> &'static [&'static str] {
    if is_7_0() { &FUNCTIONS } else { &[] }
}

/// Whether the server of this run is of 7.0 or newer.
fn is_7_0() -> bool {
    servers::selected().is_ok_and(|program| program.at_least(7, 0))
}

const FUNCTIONS: [&str; 2] = [
    "#!lua name=first\nredis.register_function('one', function() return 1 end)",
    "#!lua name=second\nredis.register_function('two', function(keys) return redis.call('GET', keys[1]) end)",
];

/// An expiry far ahead, in milliseconds since the Unix epoch.
const LATER: i64 = 4_000_000_000_123;

/// A key and the commands that make it.
pub struct Sample {
    /// Name of the key, any bytes.
    pub key: Vec<u8>,
    /// The commands, in order.
    pub commands: Vec<Cmd>,
}

impl Sample {
    fn new(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            commands: Vec::new(),
        }
    }

    /// Appends `name key arguments...`.
    fn then<A: AsRef<[u8]>>(mut self, name: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = ::redis::cmd(name);
        command.arg(self.key.as_slice());
        for argument in arguments {
            command.arg(argument.as_ref());
        }
        self.commands.push(command);
        self
    }

    /// The same with arguments given as words.
    fn words(self, name: &str, words: &str) -> Self {
        self.then(name, words.split_whitespace())
    }

    /// Appends `name subcommand key words...`.
    fn sub(mut self, name: &str, subcommand: &str, words: &str) -> Self {
        let mut command = ::redis::cmd(name);
        command.arg(subcommand).arg(self.key.as_slice());
        for word in words.split_whitespace() {
            command.arg(word);
        }
        self.commands.push(command);
        self
    }

    fn expires(self) -> Self {
        let at = LATER + i64::try_from(self.key.len()).unwrap_or_default();
        self.words("PEXPIREAT", &at.to_string())
    }

    /// Writes the key.
    pub async fn write(&self, connection: &mut MultiplexedConnection) -> Result<()> {
        let mut pipeline = Pipeline::new();
        for command in &self.commands {
            pipeline.add_command(command.clone()).ignore();
        }
        let key = String::from_utf8_lossy(&self.key).into_owned();
        pipeline
            .query_async(connection)
            .await
            .with_context(|| format!("writing sample {key:?}"))
    }
}

/// The samples; `prefix` keeps several sets apart.
pub fn samples(prefix: &str) -> Vec<Sample> {
    let named = |name: &str| Sample::new(format!("{prefix}{name}"));
    let mut all = strings(&named);
    all.extend(lists_and_sets(&named));
    all.extend(sorted_sets_and_hashes(&named));
    all.extend(streams(&named));
    all.extend(odd_keys(prefix));
    all
}

fn noise(length: usize) -> Vec<u8> {
    Noise::new(1).bytes(length)
}

fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count)
        .map(|number| format!("{prefix}{number}"))
        .collect()
}

fn strings(named: &impl Fn(&str) -> Sample) -> Vec<Sample> {
    let mut all: Vec<Sample> = [
        "0",
        "-1",
        "127",
        "-128",
        "32767",
        "-32769",
        "2147483647",
        "9223372036854775807",
        "-9223372036854775808",
        "00",
        "3.14",
        "99999999999999999999",
    ]
    .iter()
    .map(|value| named(&format!("string:{value}")).then("SET", [value]))
    .collect();
    all.push(named("string:empty").then("SET", [""]));
    all.push(
        named("string:embedded")
            .then("SET", ["forty-four bytes or less"])
            .expires(),
    );
    all.push(named("string:compressible").then("SET", ["abcabcabc ".repeat(500)]));
    all.push(named("string:noise").then("SET", [noise(3000)]).expires());
    all.push(named("string:large").then("SET", [noise(1 << 20)]));
    all.push(named("string:bytes").then("SET", [(0..=255).collect::<Vec<u8>>()]));
    all.push(named("string:bitmap").words("SETBIT", "100000 1"));
    all.push(named("string:hyperloglog").then("PFADD", numbered("e", 2000)));
    all
}

fn lists_and_sets(named: &impl Fn(&str) -> Sample) -> Vec<Sample> {
    vec![
        named("list:one").words("RPUSH", "a"),
        named("list:packed")
            .then("RPUSH", numbered("element ", 100))
            .expires(),
        named("list:nodes").then(
            "RPUSH",
            numbered("a rather long element that fills nodes ", 3000),
        ),
        named("list:plain").then(
            "RPUSH",
            [noise(20_000), b"small".to_vec(), b"x".repeat(30_000)],
        ),
        named("list:numbers").words("RPUSH", "1 -1 300 70000 5000000000 -9000000000000000000"),
        named("set:int16").words("SADD", "1 2 3 -30000"),
        named("set:int32").words("SADD", "1 2 100000"),
        named("set:int64")
            .words("SADD", "1 2 9000000000000000000")
            .expires(),
        named("set:table").then("SADD", numbered("member ", 1000)),
        named("set:mixed").words("SADD", "1 two 3.0"),
    ]
}

fn sorted_sets_and_hashes(named: &impl Fn(&str) -> Sample) -> Vec<Sample> {
    let pairs =
        |count: usize| (0..count).flat_map(|n| [format!("{}.{n}", n * n), format!("member {n}")]);
    let fields =
        |count: usize| (0..count).flat_map(|n| [format!("field {n}"), format!("value {n}")]);
    vec![
        named("zset:packed")
            .words("ZADD", "1 a 2.5 b -inf c +inf d 0 e")
            .expires(),
        named("zset:skiplist").then("ZADD", pairs(1000)),
        named("zset:extremes")
            .then("ZADD", pairs(200))
            .words("ZADD", "-inf low +inf high 1e-300 tiny"),
        named("zset:geo").words(
            "GEOADD",
            "13.361389 38.115556 Palermo 15.087269 37.502669 Catania",
        ),
        named("hash:packed")
            .words("HSET", "a 1 b 2 c three")
            .expires(),
        named("hash:table").then("HSET", fields(2000)),
        named("hash:long").then(
            "HSET",
            [b"field".to_vec(), noise(5000), noise(100), b"1".to_vec()],
        ),
    ]
}

/// The longer form of arguments where the server knows it.
fn since_7_0<'a>(before: &'a str, since: &'a str) -> &'a str {
    if is_7_0() { since } else { before }
}

fn streams(named: &impl Fn(&str) -> Sample) -> Vec<Sample> {
    let add = |sample: Sample, count: usize| {
        (1..=count).fold(sample, |sample, n| {
            sample.words("XADD", &format!("{n}-1 field {n} other value{n}"))
        })
    };
    vec![
        add(named("stream:plain"), 5),
        add(named("stream:nodes"), 350)
            .words("XDEL", "3-1 7-1 350-1")
            .expires(),
        named("stream:empty").sub("XGROUP", "CREATE", "group $ MKSTREAM"),
        add(named("stream:groups"), 30)
            .sub("XGROUP", "CREATE", "readers 0")
            .sub(
                "XGROUP",
                "CREATE",
                since_7_0("idle 10-1", "idle 10-1 ENTRIESREAD 9"),
            )
            .sub("XGROUP", "CREATECONSUMER", "readers waiting")
            .words(
                "XCLAIM",
                "readers alice 0 1-1 2-1 3-1 TIME 1700000000000 RETRYCOUNT 4 FORCE",
            )
            .words("XCLAIM", "readers bob 0 4-1 5-1 FORCE")
            .words("XACK", "readers 2-1"),
        add(named("stream:trimmed"), 10)
            .words("XTRIM", "MAXLEN 2")
            .words(
                "XSETID",
                since_7_0("99-9", "99-9 ENTRIESADDED 500 MAXDELETEDID 50-0"),
            ),
    ]
}

/// Keys that the server writes as numbers or compressed, and others that are no text.
fn odd_keys(prefix: &str) -> Vec<Sample> {
    let mut keys: Vec<Vec<u8>> = [
        "5",
        "-77",
        "1234",
        "-30001",
        "1000000",
        "-2147483648",
        "2147483648",
    ]
    .map(|key| key.as_bytes().to_vec())
    .into();
    if prefix.is_empty() {
        keys.push(Vec::new());
    } else {
        keys.clear();
    }
    keys.push(format!("{prefix}{}", "long key ".repeat(100)).into_bytes());
    keys.push([prefix.as_bytes(), &noise(100)].concat());
    keys.push(format!("{prefix}{{tag}}ключ\r\n").into_bytes());
    keys.into_iter()
        .map(|key| Sample::new(key).then("SET", ["odd"]))
        .collect()
}
