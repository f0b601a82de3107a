//! What a lease says and how long it has said so.
