//! Reads a stored shard to its end without sending anything: what could not be sent is found before the first key is, and keys
//! that expire are counted as of now.

use super::{error::ReplayError, value_limit::ValueLimit};
use common::{
    rdb::{Event, Key, RdbError, RecordReader, payload::restore_payload_length},
    storage::{BlockReader, CompressionPool, ObjectStore, ShardIndex},
};
use std::{ops::ControlFlow, sync::Arc};

/// Reads every record, each block proven first, and shows the keys.
pub async fn walk(
    store: ObjectStore,
    pool: CompressionPool,
    key: String,
    index: Arc<ShardIndex>,
    mut on_key: impl FnMut(&Key<'_>) + Send,
) -> Result<(), ReplayError> {
    let shard = index.shard;
    let undecodable = |source: RdbError| ReplayError::Records { shard, source };
    let mut reader = RecordReader::new();
    let mut blocks = BlockReader::new(store, key, index, 0, pool);
    while let Some(block) = blocks.next().await? {
        let mut refused = None;
        let number = block.number as u64;
        let taken = reader.feed(
            &block.bytes,
            &mut |event| match visit(&event, number, &mut on_key) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    refused = Some(error);
                    ControlFlow::Break(())
                }
            },
        );
        taken.map_err(undecodable)?;
        if let Some(error) = refused {
            return Err(error);
        }
    }
    if reader.is_finished() {
        Ok(())
    } else {
        Err(ReplayError::Truncated { shard })
    }
}

fn visit(
    event: &Event<'_>,
    block: u64,
    on_key: &mut impl FnMut(&Key<'_>),
) -> Result<(), ReplayError> {
    match event {
        Event::Key(key) => {
            let length = key.value.end.saturating_sub(key.value.start);
            sendable(key, usize::try_from(length).unwrap_or(usize::MAX), block)?;
            on_key(key);
            Ok(())
        }
        Event::ModuleAux => Err(module_aux()),
        Event::Header(_)
        | Event::Aux { .. }
        | Event::Function(_)
        | Event::SelectDb(_)
        | Event::ResizeDb { .. }
        | Event::End { .. } => Ok(()),
    }
}

/// Whether RESTORE can carry a key whose value takes `length` bytes and which starts in `block`.
pub(super) fn sendable(key: &Key<'_>, length: usize, block: u64) -> Result<(), ReplayError> {
    if key.db != 0 {
        return Err(ReplayError::Database { db: key.db });
    }
    if key.metadata.is_some() {
        return Err(ReplayError::Unsupported {
            what: "metadata of keys (Redis 8.6)",
        });
    }
    let longest = ValueLimit::default();
    if restore_payload_length(length) > longest.bytes() {
        return Err(ReplayError::too_long(key.key, block, longest));
    }
    Ok(())
}

/// RESTORE cannot carry it at all.
pub(super) fn module_aux() -> ReplayError {
    ReplayError::Unsupported {
        what: "data of a module that belongs to no key",
    }
}
