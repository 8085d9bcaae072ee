//! The Node.js addon: conversion only.
//!
//! Every concern is `nestbox-client`'s; this crate turns JavaScript values into its requests and its events into
//! JavaScript values, and has libuv poll its fd. Promises: nothing panics into JavaScript (each export catches what
//! unwinds); nothing is shared between the environments (main thread, workers) that load the addon but what the client
//! itself shares: the thread that starts fork servers. The TypeScript layer above has validated all input: what is refused
//! here is refused with a plain error.

mod event;
mod fork;
mod loop_poll;
mod policy;
mod request;
mod server;
mod uv;
