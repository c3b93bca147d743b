//! Who a client is, and with which secret servers are persuaded of it.

pub mod client;
pub(crate) mod failures;
pub(crate) mod greeting;
pub mod identity;
mod keyring;
mod login;
mod places;
mod policy;
mod rules;
pub mod secret;
pub mod users;
pub mod verifier;

pub use manatee_proxy_core::rules::{hba, usermap};
pub use manatee_proxy_core::terms::Access;

pub use client::{Client, Opened};
pub use greeting::{Greetings, check_name};
pub use identity::{Entrance, Identity};
pub use keyring::{Keyring, Keys};
pub use login::{Admission, Entered, Gatekeeper, Progress, login};
pub use places::Taken;
pub use policy::{Policy, PolicyError};
pub use rules::RulesError;
pub use secret::{Md5Hash, Secret, nonce, random};
