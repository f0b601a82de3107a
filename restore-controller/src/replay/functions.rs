//! Loads the libraries of functions into every primary. Each shard of a backup holds all of them; one that is
//! there already with the same code is left alone; with other code a person has to resolve the conflict.

use super::{error::ReplayError, routes::read_routes};
use common::cluster::{
    endpoint::NodeAccess,
    node::{NodeClient, NodeError},
};
use redis::Value;
use std::{net::SocketAddr, time::Duration};

/// Loading may run the library's own code.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Loads a library into every primary of the target.
pub async fn load(
    nodes: &[SocketAddr],
    members: &NodeAccess,
    code: &[u8],
) -> Result<(), ReplayError> {
    for primary in read_routes(nodes, members).await?.primaries {
        let endpoint = members.endpoint(primary.address, TIMEOUT);
        let client = NodeClient::connect(&endpoint)
            .await
            .map_err(ReplayError::Node)?;
        load_into(&client, code).await?;
    }
    Ok(())
}

async fn load_into(client: &NodeClient, code: &[u8]) -> Result<(), ReplayError> {
    let Err(error) = client.function_load(code, false).await else {
        return Ok(());
    };
    // Library 'name' already exists: text of `functionsCreateWithLibraryCtx` in Redis' src/functions.c.
    if !error.to_string().contains("already exists") {
        return Err(ReplayError::Node(error));
    }
    if has(client, code).await.map_err(ReplayError::Node)? {
        return Ok(());
    }
    Err(ReplayError::FunctionConflict {
        node: client.address(),
        library: name(code),
    })
}

/// Whether the node has a library with exactly this code.
async fn has(client: &NodeClient, code: &[u8]) -> Result<bool, NodeError> {
    let mut command = redis::cmd("FUNCTION");
    command.arg("LIST").arg("WITHCODE");
    let libraries: Vec<Value> = client.ask("FUNCTION LIST", &command).await?;
    Ok(libraries.iter().any(|library| holds(library, code)))
}

/// A library is described by a list of names and values; its code is the only string that equals it.
fn holds(library: &Value, code: &[u8]) -> bool {
    if let Value::Array(items) = library {
        return items.iter().any(|item| holds(item, code));
    }
    if let Value::Map(pairs) = library {
        return pairs.iter().any(|(_, value)| holds(value, code));
    }
    matches!(library, Value::BulkString(bytes) if bytes == code)
}

/// The name in a library's first line, for example `#!lua name=orders`.
fn name(code: &[u8]) -> String {
    let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let name = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("name="));
    name.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_named_in_their_first_line() {
        assert_eq!(
            name(b"#!lua name=orders\nredis.register_function()"),
            "orders"
        );
        assert_eq!(name(b""), "unknown");
    }
}
