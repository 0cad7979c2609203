// Package store keeps everything durable in Badger: events, state, accounts, cursors, the inbox.
//
// All writes go through one committer goroutine: Update hands it a function, the committer runs
// waiting functions one after another on one write set (each sees the writes of those before
// it; one that fails leaves nothing behind), syncs once, and answers them all. So a function given
// to Update may read and then write without races, must have no effects outside, and should do little:
// prepare (hash, sign, encode) before.
//
//	Update ─┐                ┌ overlay: what the group wrote  ┐
//	Update ─┼─ commitLoop ─ fill ── commit ── Badger's log ── sync ── witness ── show ─┬ View, Wait
//	Update ─┘                                                                        └ answers
//
// Each durable change that somebody may wait for is logged with Tx.Log under a Position, in commit order.
// A reader never sees n+1 before n. /sync, push and the federation sender read the same log
// (Reader.Changes) and are woken by Wait.
//
// Commits are numbered, and the numbers are Badger's timestamps (managed mode): a View shows the newest durable commit and
// never waits for one under way.
//
// A data directory holds, beside Badger's files:
//
//	lock         locked while a process has the directory open
//	incarnation  the incarnation, in hex; Badger holds it too
//	witness      the newest durable commit, to notice a log that lost its tail (witness.go)
//	reserve      blocks kept for opening and closing on a full disk (reserve.go)
//	*.mem.aside  logs that rest on lost commits, put aside by Open (inspect.go)
//
// The layout inside Badger stands in keys.go.
package store
