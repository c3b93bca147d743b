//! Side-by-side measurements of the proxy against real peers.
