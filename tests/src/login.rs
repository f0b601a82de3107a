//! How clients of the tests reach servers: in the clear or encrypted, as which user.

use common::cluster::{
    dial::dial,
    endpoint::{Endpoint, NodeCredentials},
    transport::Transport,
};
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, aio::MultiplexedConnection,
};
use std::{io, net::SocketAddr, time::Duration};

/// A user and its password, and whether it encrypts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLogin {
    /// Name; empty: that of the user that needs none.
    pub user: String,
    /// Password.
    pub password: String,
    /// Whether it encrypts.
    pub transport: Transport,
}

impl ClientLogin {
    /// A user and its password.
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            transport: Transport::Plain,
        }
    }

    /// A client that encrypts, without a user.
    pub fn encrypted(transport: Transport) -> Self {
        Self {
            transport,
            ..Self::default()
        }
    }
}

/// A connection to a server. `login`: none: as the user default, in the clear. `within` bounds connecting and each answer.
pub async fn connect(
    address: SocketAddr,
    login: Option<&ClientLogin>,
    within: Duration,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(within))
        .set_response_timeout(Some(within));
    let login = login.cloned().unwrap_or_default();
    let client = client(&address.to_string(), Some(&login))?;
    if login.transport == Transport::Plain {
        return client
            .get_multiplexed_async_connection_with_config(&config)
            .await;
    }
    let mut endpoint = Endpoint::new(address, within).with_transport(login.transport);
    if !login.user.is_empty() {
        let credentials = NodeCredentials::new(login.user, login.password.into());
        endpoint = endpoint.with_credentials(credentials);
    }
    let stream = dial(&endpoint).await;
    let stream = stream.map_err(|error| RedisError::from(io::Error::other(error)))?;
    let info = RedisConnectionInfo::default().set_skip_set_lib_name();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(&info, stream, config).await?;
    tokio::spawn(driver);
    Ok(connection)
}

/// A client of a server, `host:port`, that logs in so. None: not at all. In the clear.
pub fn client(address: &str, login: Option<&ClientLogin>) -> Result<Client, RedisError> {
    let mut info: ConnectionInfo = format!("redis://{address}").into_connection_info()?;
    if let Some(login) = login.filter(|login| !login.user.is_empty()) {
        let with = RedisConnectionInfo::default()
            .set_username(&login.user)
            .set_password(&login.password);
        info = info.set_redis_settings(with);
    }
    Client::open(info)
}
