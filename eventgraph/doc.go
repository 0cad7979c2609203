// Package eventgraph is the signed event graph of a Matrix room: names and keys, events and
// their hashes and signatures, room versions, and the state trie.
//
// It is pure: no clock, randomness, context, I/O or goroutine. Times are arguments, in Unix
// milliseconds as everywhere in Matrix. Whatever must be read (trie nodes, public keys) is read
// through an interface of one method that the caller supplies.
//
// The way of an event: [ParseEvent] checks limits and form and finds its ID and whether its content fits its hash;
// [Event.VerifySignatures] checks who signed it; package auth applies the authorization rules; package stateres
// resolves the states of forks, which are [Trie] roots. [Build] makes events of one's own, [Event.Redact] reduces one. What
// differs between room versions, 3 to 12, stands in one table, [Traits].
//
// Two things are plexus' own and not the Matrix specification's: server names that are keys ([ParseServerName], used by
// those who federate over libp2p; events may come from any server name), and the [Certificate] in a [KeyDocument].
//
// Not here: fetching and storing of events, soft failure (it is a decision of the moment of receipt), what
// clients are shown. Room versions 1 and 2 are not here either: their event IDs are chosen by senders.
package eventgraph
