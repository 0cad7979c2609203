package eventgraph

// Hash is a SHA-256: of a trie node, and so of a whole state. The zero Hash is the empty state.
type Hash [32]byte

// NodeReader reads a trie node by its hash. The bytes belong to the reader and are not kept.
type NodeReader interface {
	TrieNode(h Hash) ([]byte, error)
}

// Trie is room state, (type, state key) -> event ID, as a persistent hash trie: equal sets have equal
// roots in whatever order they were built. A Trie is for one goroutine.
type Trie struct {
	_ struct{}
}

func OpenTrie(nodes NodeReader, root Hash) *Trie                  { panic("eventgraph: skeleton") }
func (t *Trie) Get(k StateTuple) (EventID, bool, error)           { panic("eventgraph: skeleton") }
func (t *Trie) Set(k StateTuple, id EventID) error                { panic("eventgraph: skeleton") }
func (t *Trie) Delete(k StateTuple) error                         { panic("eventgraph: skeleton") }
func (t *Trie) Walk(f func(k StateTuple, id EventID) error) error { panic("eventgraph: skeleton") }

// Commit returns the root and the nodes made since OpenTrie that the root needs, for the caller to
// store; the trie goes on from there.
func (t *Trie) Commit() (Hash, map[Hash][]byte) { panic("eventgraph: skeleton") }

// Difference is one tuple on which two states differ; "" where it is absent.
type Difference struct {
	Tuple StateTuple
	A, B  EventID
}

// Diff calls f for each tuple on which a and b differ; its cost is the size of the difference.
func Diff(nodes NodeReader, a, b Hash, f func(Difference) error) error { panic("eventgraph: skeleton") }

// NodeChildren lists the nodes that a node refers to, for collection of what nothing refers to.
func NodeChildren(node []byte) ([]Hash, error) { panic("eventgraph: skeleton") }
