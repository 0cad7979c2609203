// Package eventgraph is the signed event graph of a Matrix room: names and keys, events and
// their hashes and signatures, room versions, and the state trie.
//
// It is pure: no clock, randomness, context, I/O or goroutine. Times are arguments, in Unix
// milliseconds as everywhere in Matrix. Whatever must be read (trie nodes, public keys) is read
// through an interface of one method that the caller supplies.
package eventgraph
