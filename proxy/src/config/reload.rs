//! Effect of a reload on each setting, said where the setting is declared.

/// Effect of a reload of the file (SIGHUP, RELOAD) on a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// It is in use from then on.
    Live,
    /// It is in use after a restart.
    Restart,
    /// Each key of the section says it.
    ByKey(&'static [(&'static str, Reload)]),
}

impl Reload {
    /// Of a key as it stands in the file, `key` or `section.key`, among these; `None` if there is no such key.
    pub(super) fn of(declared: &[(&str, Self)], key: &str) -> Option<Self> {
        let (name, rest) = key.split_once('.').map_or((key, None), |(section, rest)| (section, Some(rest)));
        let (_, reload) = declared.iter().find(|(declared, _)| *declared == name)?;
        match (reload, rest) {
            (Self::ByKey(keys), Some(rest)) => Self::of(keys, rest),
            (Self::ByKey(_), None) => None,
            (whole, _) => Some(*whole),
        }
    }
}

/// A section of the file. Each key is `name: type => Reload`, so that none can be without.
macro_rules! settings {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$key_meta:meta])* pub $key:ident: $type:ty => $reload:expr,)*
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$key_meta])* pub $key: $type,)*
        }

        impl $name {
            const RELOAD: &'static [(&'static str, Reload)] = &[$((stringify!($key), $reload)),*];
        }
    };
}
