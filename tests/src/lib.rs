//! A whole shard on one machine: `manatee-lab` and the end-to-end tests are built on this.
