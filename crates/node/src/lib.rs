//! The Node.js addon: conversion only.
//!
//! Every concern is `nestbox-client`'s; this crate turns JavaScript values into its requests and its events into
//! JavaScript values, and has libuv poll its fd. Promises: nothing panics into JavaScript (each export catches what
//! unwinds); nothing is shared between the environments (main thread, workers) that load the addon but what the client
//! itself shares: the thread that starts fork servers. The TypeScript layer above has validated all input: what is refused
//! here is refused with a plain error.

#![cfg_attr(test, allow(dead_code, reason = "napi exports nothing in a test build"))]
#![allow(unreachable_pub, reason = "what napi exports is reached from JavaScript")]
#![allow(missing_debug_implementations, reason = "values of JavaScript can't be shown from here")]
#![allow(clippy::needless_pass_by_value, reason = "napi hands values over")]
#![allow(
    clippy::cast_precision_loss,
    reason = "JavaScript counts in doubles; 2^53 ns are 104 days, 2^53 bytes 8 PiB"
)]

mod doctor;
mod event;
mod fork;
mod loop_poll;
mod policy;
mod request;
mod result;
mod server;
mod syscall;
mod uv;
