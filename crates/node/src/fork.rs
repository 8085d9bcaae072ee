//! Requests of `nestbox/sandbox2` from JavaScript values.
