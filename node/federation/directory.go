package federation

import (
	"context"
	"net/http"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
)

// maxTheirRooms bounds the rooms of an answer about rooms of another server; no client asks for as many at once.
const maxTheirRooms = 500

// maxTheirSummary bounds one room in such an answer, in bytes. What it is made of, events of the room, cannot be larger.
const maxTheirSummary = 64 << 10

// PublicRooms asks a server for a page of its directory. What comes is its word for rooms that need not be its own.
func (f *Federation) PublicRooms(ctx context.Context, server eventgraph.ServerName, q rooms.PublicQuery) (*rooms.PublicPage, error) {
	var page rooms.PublicPage
	if err := f.do(ctx, server, http.MethodPost, v1+"publicRooms", q, &page); err != nil {
		return nil, err
	}
	page.Chunk = wellFormed(page.Chunk)
	return &page, nil
}

// wellFormed leaves out of another server's summaries what names no room or is too large, and what no client asked for.
func wellFormed(list []*rooms.Summary) []*rooms.Summary {
	list = slices.DeleteFunc(list, func(s *rooms.Summary) bool {
		if s == nil {
			return true
		}
		_, err := eventgraph.ParseRoomID(string(s.RoomID))
		return err != nil || s.Size() > maxTheirSummary
	})
	return append([]*rooms.Summary{}, list[:min(len(list), maxTheirRooms)]...)
}
