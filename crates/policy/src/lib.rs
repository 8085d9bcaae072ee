//! A policy made concrete: mounts, libraries and filters as a plan.
