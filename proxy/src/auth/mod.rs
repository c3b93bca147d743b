//! Identity of a client, and the secret by which servers are persuaded of it.

pub mod client;
mod client_limits;
pub(crate) mod failures;
pub mod identity;
mod keyring;
mod login;
pub(crate) mod login_parameters;
mod policy;
mod rules;
pub mod secret;
pub mod users;
pub mod verifier;

pub use manatee_proxy_core::rules::{hba, usermap};
pub use manatee_proxy_core::terms::Access;

pub use client::{Client, Opened};
pub use client_limits::ClientSlotGuard;
pub use identity::{Identity, ListenerRole};
pub use keyring::{Keyring, Keys};
pub use login::{Admission, Gatekeeper, Progress, ShardMembership, login};
pub use login_parameters::{ParameterCache, check_name};
pub use policy::{Policy, PolicyError};
pub use rules::RulesError;
pub use secret::{Md5Hash, Secret, nonce, random};
