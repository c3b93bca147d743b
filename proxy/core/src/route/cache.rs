//! The bounded cache of classes.
//!
//! Keys are kept whole: a collision of hashes can never send a write to a standby. The hash is seeded,
//! so that clients cannot choose colliding texts. Eviction is by second chance (CLOCK).

use std::{collections::HashMap, rc::Rc, sync::Arc};

use arc_swap::{ArcSwapOption, Cache as CatalogCache};
use foldhash::quality::FixedState;

use super::{
    class::{Access, Class, Reason, SqlContext},
    parse,
    tokenizer::{self, Scan},
    volatility::Catalog,
};

/// All keys of one cache together; bounds what many long texts can take.
const MAX_KEYS_BYTES: usize = 8 * 1024 * 1024;

/// Classifies `text` by the parser alone: the same class as a [`Classifier`] gives, only slower.
#[must_use]
pub fn classify_uncached(text: &[u8], context: SqlContext, catalog: Option<&Catalog>) -> Class {
    let (_, hint) = tokenizer::scan(text, context, &mut Vec::new());
    parse::classify(text, context, catalog, hint)
}

/// Number of lookups in the cache, and of those that had to parse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Texts classified.
    pub lookups: u64,
    /// Of these, the ones that were parsed.
    pub misses: u64,
    /// Of these, the ones that were not kept: too long to be.
    pub uncacheable: u64,
}

/// Classifies the texts of one database on one session thread.
pub struct Classifier {
    catalog: CatalogCache<Arc<ArcSwapOption<Catalog>>, Option<Arc<Catalog>>>,
    /// The one the entries were made with.
    current: Option<Arc<Catalog>>,
    capacity: usize,
    index: HashMap<Rc<[u8]>, usize, FixedState>,
    entries: Vec<Entry>,
    keys_bytes: usize,
    hand: usize,
    /// Reused for every text.
    key: Vec<u8>,
    counters: CacheCounters,
}

struct Entry {
    key: Rc<[u8]>,
    class: Rc<Class>,
    used: bool,
}

impl std::fmt::Debug for Classifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys may hold literals.
        f.debug_struct("Classifier").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Classifier {
    /// A classifier with an empty cache of at most `capacity` texts. `seed` is a random number (the cache's
    /// hash is keyed with it). `catalog` is looked at on every call, so that a reload takes effect at once.
    #[must_use]
    pub fn new(seed: u64, capacity: usize, catalog: Arc<ArcSwapOption<Catalog>>) -> Self {
        let mut catalog = CatalogCache::new(catalog);
        let current = catalog.load().clone();
        Self {
            catalog,
            current,
            capacity: capacity.max(1),
            index: HashMap::with_hasher(FixedState::with_seed(seed)),
            entries: Vec::new(),
            keys_bytes: 0,
            hand: 0,
            key: Vec::with_capacity(1024),
            counters: CacheCounters::default(),
        }
    }

    /// Classifies `text` (without its terminating NUL).
    pub fn classify(&mut self, text: &[u8], context: SqlContext) -> Rc<Class> {
        self.follow_catalog();
        self.counters.lookups += 1;
        let (scan, hint) = tokenizer::scan(text, context, &mut self.key);
        // The others have no key.
        if matches!(scan, Scan::Fingerprint | Scan::Verbatim)
            && let Some(&at) = self.index.get(self.key.as_slice())
            && let Some(entry) = self.entries.get_mut(at)
        {
            entry.used = true;
            return Rc::clone(&entry.class);
        }
        self.counters.misses += 1;
        if scan == Scan::Unreadable {
            self.counters.uncacheable += 1;
            return Rc::new(Class { hint, ..Class::unknown(Reason::Unreadable) });
        }
        let catalog = self.current.as_deref();
        let class = Rc::new(if scan == Scan::Fingerprint {
            parse::classify(&tokenizer::render(&self.key), context, catalog, hint)
        } else {
            parse::classify(text, context, catalog, hint)
        });
        if scan == Scan::TooLong {
            self.counters.uncacheable += 1;
        } else {
            self.keep(Rc::clone(&class));
        }
        class
    }

    /// Remembers that a standby refused `text` (25006 and the like): from now on it needs the primary.
    /// Texts too long for the cache are not remembered.
    pub fn learn_writes(&mut self, text: &[u8], context: SqlContext) {
        let class = self.classify(text, context);
        if !class.access.is_read_only() || self.key.is_empty() {
            return;
        }
        let learned = Rc::new(Class { access: Access::Primary(Reason::Learned), ..(*class).clone() });
        match self.index.get(self.key.as_slice()).and_then(|at| self.entries.get_mut(*at)) {
            Some(entry) => entry.class = learned,
            None => self.keep(learned),
        }
    }

    /// Catalog of the database, once it is known.
    pub fn catalog(&mut self) -> Option<&Catalog> {
        self.follow_catalog();
        self.current.as_deref()
    }

    /// Counters of the cache so far.
    #[must_use]
    pub fn counters(&self) -> CacheCounters {
        self.counters
    }

    /// Number of texts that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A new catalog makes all classes out of date.
    fn follow_catalog(&mut self) {
        let newest = self.catalog.load();
        let same = match (newest, &self.current) {
            (Some(newest), Some(current)) => Arc::ptr_eq(newest, current),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.current = newest.clone();
            self.index.clear();
            self.entries.clear();
            self.keys_bytes = 0;
            self.hand = 0;
        }
    }

    /// Puts a class under the key just made.
    fn keep(&mut self, class: Rc<Class>) {
        let key: Rc<[u8]> = Rc::from(self.key.as_slice());
        while !self.entries.is_empty()
            && (self.entries.len() >= self.capacity || self.keys_bytes + key.len() > MAX_KEYS_BYTES)
        {
            self.evict();
        }
        self.keys_bytes += key.len();
        self.index.insert(Rc::clone(&key), self.entries.len());
        self.entries.push(Entry { key, class, used: false });
    }

    /// Removes the next entry that was not used since the hand last passed it.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.entries.len() {
                self.hand = 0;
            }
            let Some(entry) = self.entries.get_mut(self.hand) else { return };
            if !std::mem::take(&mut entry.used) {
                break;
            }
            self.hand += 1;
        }
        let evicted = self.entries.swap_remove(self.hand);
        self.keys_bytes -= evicted.key.len();
        self.index.remove(&evicted.key);
        // The newest moves here; it has had no time to be used.
        if let Some(moved) = self.entries.get(self.hand) {
            self.index.insert(Rc::clone(&moved.key), self.hand);
            self.hand += 1;
        }
    }
}
