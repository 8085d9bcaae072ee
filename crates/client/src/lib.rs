//! ForkClient: starts the fork server and speaks with it.
