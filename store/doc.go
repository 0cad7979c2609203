// Package store keeps everything durable in Badger: events, state, accounts, cursors, the inbox.
//
// All writes go through one committer goroutine: Update hands it a function, the committer runs
// waiting functions one after another on one Badger transaction (each sees the writes of those before
// it; one that fails leaves nothing behind), syncs once, and answers them all. So a function given
// to Update may read and then write without races, must have no effects outside, and should do little:
// prepare (hash, sign, encode) before.
//
// Each durable change that somebody may wait for is logged with Tx.Log under a Position, in commit order.
// A reader never sees n+1 before n. /sync, push and the federation sender read the same log
// (Reader.Changes) and are woken by Wait.
package store
