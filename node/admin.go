package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/p2ptransport"
	"github.com/plexus-p2p/plexus/store"
)

// maxAdminBody bounds a request on the admin socket; addresses and passwords are short.
const maxAdminBody = 64 << 10

// maxSocketPath is what the operating system takes as the path of a unix socket: 107 bytes on Linux.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// adminDialTimeout bounds how long "plexus peers add" waits for the peer.
const adminDialTimeout = 20 * time.Second

// NodeFile is node.json: how scripts find a node that can serve (design.md §8).
type NodeFile struct {
	ServerName        eventgraph.ServerName `json:"server_name"`
	PeerID            eventgraph.PeerID     `json:"peer_id"`
	ClientURL         string                `json:"client_url"`
	P2PAddrs          []string              `json:"p2p_addrs"`
	PID               int                   `json:"pid"`
	Version           string                `json:"version"`
	RegistrationToken string                `json:"registration_token"`
}

// Status is the answer of "plexus status --json" (design.md §8).
type Status struct {
	ServerName eventgraph.ServerName             `json:"server_name"`
	PeerID     eventgraph.PeerID                 `json:"peer_id"`
	Peers      []PeerStatus                      `json:"peers"`
	Rooms      map[eventgraph.RoomID]*RoomStatus `json:"rooms"`
	// ClockAheadMS is by how much this device's clock is ahead of those of most peers, or, less than zero, behind them; absent if that
	// is within an hour, or too few peers were heard lately.
	ClockAheadMS int64 `json:"clock_ahead_ms,omitempty"`
	// Blocked are the servers that "plexus block" names.
	Blocked []eventgraph.ServerName `json:"blocked,omitempty"`
	// Compromised are the servers whose identity key somebody else seems to hold, for they have shown two certificates that contradict each
	// other; this server too, if another device shows one of its own.
	Compromised []eventgraph.ServerName `json:"compromised,omitempty"`
	// Joining are the rooms that a user was let into and of which not all has come.
	Joining []JoinStatus `json:"joining,omitempty"`
}

// JoinStatus is a room that is being joined: Arrived of Expected events of its state have come; Expected is 0 if it is not known.
type JoinStatus struct {
	Room     eventgraph.RoomID `json:"room_id"`
	User     eventgraph.UserID `json:"user_id"`
	Arrived  int               `json:"arrived"`
	Expected int               `json:"expected,omitempty"`
}

// PeerStatus is a connected peer. ServerName is "" until it has shown for whom it speaks.
type PeerStatus struct {
	PeerID     eventgraph.PeerID     `json:"peer_id"`
	ServerName eventgraph.ServerName `json:"server_name,omitempty"`
	Addr       string                `json:"addr"`
}

// RoomStatus is a room held here. StateHash is the hex root of the trie of the current resolved state.
type RoomStatus struct {
	Version     eventgraph.RoomVersion `json:"version"`
	Extremities []eventgraph.EventID   `json:"extremities"`
	StateHash   string                 `json:"state_hash"`
}

func (n *Node) writeNodeFile() error {
	raw, err := json.MarshalIndent(NodeFile{
		ServerName: n.keys.server, PeerID: n.keys.peer, ClientURL: n.ClientURL(), P2PAddrs: n.P2PAddrs(),
		PID: os.Getpid(), Version: Version, RegistrationToken: n.token,
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(n.config.Dir, nodeFile), append(raw, '\n'))
}

// listenAdmin opens DIR/admin.sock, for the owner alone. The store's lock is held, so a socket that is there is a dead one.
func (n *Node) listenAdmin(ctx context.Context) error {
	path := filepath.Join(n.config.Dir, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old admin socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("open admin socket: %w", err)
	}
	n.admin = l
	return os.Chmod(path, 0o600)
}

// adminHandler serves the subcommands of the command line; the socket's file mode says who may ask.
func (n *Node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.Status()
		answerAdmin(w, s, err)
	})
	mux.HandleFunc("GET /peers", func(w http.ResponseWriter, r *http.Request) { answerAdmin(w, n.peers(), nil) })
	mux.HandleFunc("POST /peers", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Addr string }
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&body)
		if err == nil {
			ctx, cancel := context.WithTimeout(r.Context(), adminDialTimeout)
			defer cancel()
			err = n.AddPeer(ctx, body.Addr)
		}
		answerAdmin(w, struct{}{}, err)
	})
	n.adminUsers(mux)
	n.adminReports(mux)
	n.adminRooms(mux)
	n.adminMedia(mux)
	n.adminInvites(mux)
	n.adminBlock(mux)
	n.adminNotices(mux)
	return mux
}

func answerAdmin(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		v = map[string]string{"error": err.Error()}
	}
	json.NewEncoder(w).Encode(v) // the asker has gone if this fails
}

// Status tells who is connected and what state each room is in.
func (n *Node) Status() (*Status, error) {
	s := &Status{ServerName: n.keys.server, PeerID: n.keys.peer, Peers: n.peers(), Rooms: map[eventgraph.RoomID]*RoomStatus{}}
	s.ClockAheadMS = n.rooms.ClockAhead().Milliseconds()
	blocked, err := n.fed.Blocked()
	if err != nil {
		return nil, err
	}
	s.Blocked = blocked
	if s.Compromised, err = n.fed.Compromised(); err != nil {
		return nil, err
	}
	err = n.store.View(func(r *store.Reader) error {
		err := r.Rooms(func(room *store.Room) (bool, error) {
			s.Rooms[room.ID] = &RoomStatus{Version: room.Version, Extremities: room.Forward, StateHash: hex.EncodeToString(room.State[:])}
			return true, nil
		})
		if err != nil {
			return err
		}
		return r.Joins(func(j *store.Join) (bool, error) {
			if s.Rooms[j.Room] == nil {
				s.Joining = append(s.Joining, JoinStatus{j.Room, j.User, j.Arrived, j.Expected})
			}
			return true, nil
		})
	})
	return s, err
}

func (n *Node) peers() []PeerStatus {
	peers := []PeerStatus{}
	for _, p := range n.transport.Peers() {
		peers = append(peers, n.peerStatus(p))
	}
	return peers
}

func (n *Node) peerStatus(p p2ptransport.Peer) PeerStatus {
	server, _ := n.fed.ServerOf(eventgraph.PeerID(p.ID))
	return PeerStatus{PeerID: eventgraph.PeerID(p.ID), ServerName: server, Addr: p.Addr}
}
