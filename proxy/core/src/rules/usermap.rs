//! Names in certificates to roles: maps as in pg_ident.conf (manual, section 21.2), without regular
//! expressions. Pure.

use super::hba::fields;

/// All maps.
#[derive(Clone, Debug, Default)]
pub struct UserMaps(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    map: String,
    name: String,
    role: String,
}

impl UserMaps {
    /// Reads maps; on an error the line, from 1, and the problem.
    ///
    /// # Errors
    /// For the first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let words = fields(line);
            if words.is_empty() {
                continue;
            }
            let fail = |problem: &str| (index + 1, problem.to_owned());
            let [map, name, role] = words.as_slice() else {
                return Err(fail("write it as MAPNAME NAME-IN-CERTIFICATE ROLE"));
            };
            let one = |field: &[super::hba::Word]| match field {
                [(word, quoted)] if *quoted || !word.starts_with('/') => Ok(word.clone()),
                [_] => Err(fail("regular expressions are not supported; list the names")),
                _ => Err(fail("each field must be one word")),
            };
            entries.push(Entry { map: one(map)?, name: one(name)?, role: one(role)? });
        }
        Ok(Self(entries))
    }

    /// Whether whoever has a certificate for `name` may be `role`. Without a map the names must be the same.
    pub fn allows(&self, map: Option<&str>, name: &str, role: &str) -> bool {
        match map {
            None => name == role,
            Some(map) => self.0.iter().any(|entry| entry.map == map && entry.name == name && entry.role == role),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_say_who_may_be_whom() {
        let maps =
            UserMaps::parse("# map name role\npeople \"Alice A.\" alice\npeople \"Alice A.\" app\nmachines web app\n")
                .expect("valid");
        for (map, name, role, right) in [
            (None, "alice", "alice", true),
            (None, "alice", "app", false),
            (Some("people"), "Alice A.", "app", true),
            (Some("people"), "alice", "alice", false),
            (Some("people"), "web", "app", false),
            (Some("machines"), "web", "app", true),
            (Some("nothing"), "web", "app", false),
        ] {
            assert_eq!(maps.allows(map, name, role), right, "{map:?} {name} {role}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for line in ["people alice", "people /^(.*)$ \\1", "people a,b c", "a b c d"] {
            assert_eq!(UserMaps::parse(line).expect_err(line).0, 1, "{line}");
        }
    }
}
