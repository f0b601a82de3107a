//! How clients of the tests log in.

use anyhow::Result;
use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

/// A user and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientLogin {
    /// Name.
    pub user: String,
    /// Password.
    pub password: String,
}

impl ClientLogin {
    /// A user and its password.
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }
}

/// A client of a server, `host:port`, that logs in so. None: not at all.
pub fn client(address: &str, login: Option<&ClientLogin>) -> Result<Client, redis::RedisError> {
    let mut info: ConnectionInfo = format!("redis://{address}").into_connection_info()?;
    if let Some(login) = login {
        let with = RedisConnectionInfo::default()
            .set_username(&login.user)
            .set_password(&login.password);
        info = info.set_redis_settings(with);
    }
    Client::open(info)
}
