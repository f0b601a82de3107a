//! How fast and how small each gzip level is, for the choice of the default. `cargo run --release --package tests --example gzip_levels`.

#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // figures for people

use flate2::{Compress, Compression, FlushCompress, Status};
use std::{fmt::Write, time::Instant};
use tests::noise::Noise;

const BLOCK: usize = 8 << 20;

/// Records as an RDB without LZF holds them: key, then JSON-like text of about 200 bytes.
fn records(length: usize) -> Vec<u8> {
    let mut noise = Noise::new(1);
    let mut text = String::with_capacity(length + 400);
    let mut number = 0;
    while text.len() < length {
        let state = noise.word();
        number += 1;
        let city = ["Berlin", "Paris", "Lyon", "Oslo", "Rome"][state as usize % 5];
        let name = ["Alice", "Bob", "Carol", "David", "Eve"][(state >> 8) as usize % 5];
        let written = write!(
            text,
            "\0\u{10}key:{number:09}{{\"id\":{number},\"email\":\"user{}@example.com\",\"name\":\"{name}\",\"balance\":{},\"active\":{},\"token\":\"{state:016x}\",\"city\":\"{city}\",\"country\":\"Wonderland\"}}",
            state % 1_000_003,
            state % 100_000,
            state & 1 == 0,
        );
        written.expect("writing to a string");
    }
    text.truncate(length);
    text.into_bytes()
}

fn compress(block: &[u8], level: u32, out: &mut Vec<u8>) {
    out.clear();
    let mut codec = Compress::new_gzip(Compression::new(level), 15);
    loop {
        let done = usize::try_from(codec.total_in()).expect("a block");
        let status = codec.compress_vec(&block[done..], out, FlushCompress::Finish);
        match status.expect("compression") {
            Status::StreamEnd => return,
            Status::Ok | Status::BufError => out.reserve(1 << 20),
        }
    }
}

fn main() {
    let raw = records(8 * BLOCK);
    let mut out = Vec::with_capacity(BLOCK);
    for level in 1..=6 {
        let mut speeds = Vec::new();
        let mut stored = 0;
        for _ in 0..5 {
            let start = Instant::now();
            stored = 0;
            for block in raw.chunks(BLOCK) {
                compress(block, level, &mut out);
                stored += out.len();
            }
            speeds.push(raw.len() as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
        speeds.sort_by(f64::total_cmp);
        let ratio = stored as f64 / raw.len() as f64;
        println!(
            "level {level}: {:.0} MB/s, {ratio:.3} of the size",
            speeds[2]
        );
    }
}
