//! Being written: loads each database's `route::Catalog` and keeps it current.
