package store

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// The content of media lies in files beside Badger (mediafiles.go); what is known of it are records here. A file is there before its
// record, and its record goes before it.

const (
	// MaxPendingMedia is how many media IDs a user may have that were created and not yet uploaded to (CS API, POST /media/v1/create).
	MaxPendingMedia = 32
	// MaxThumbnails are kept of one file, and maxThumbnailBytes of all; further ones are made anew each time.
	MaxThumbnails     = 16
	maxThumbnailBytes = 512 << 20
	// mediaUsedStep is how exactly it is known when remote media were used last, in ms: most downloads shall cost no commit.
	mediaUsedStep = 24 * 60 * 60 * 1000
)

var (
	// ErrMediaExists: the media ID has its content already.
	ErrMediaExists = errors.New("the media ID has its content already")
	// ErrMediaQuota: the user, or all users together, have as much as they may.
	ErrMediaQuota = errors.New("no more media may be stored")
	// ErrMediaPending: the user has created MaxPendingMedia media IDs, and uploaded to none of them.
	ErrMediaPending = errors.New("too many media IDs wait for their content")
)

// MediaID names media: the two parts of an mxc URI.
type MediaID struct {
	Server eventgraph.ServerName
	ID     string
}

// Media is what is known of uploaded or fetched media, or of an ID that waits for its content.
type Media struct {
	MediaID     `json:"-"`
	User        eventgraph.UserID `json:"user"` // who created or uploaded it, or fetched it first
	CreatedTS   int64             `json:"created_ts"`
	ExpiresTS   int64             `json:"expires_ts,omitempty"` // ms; of an ID that waits for its content, else 0
	Size        int64             `json:"size"`
	SHA256      []byte            `json:"sha256,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Name        string            `json:"name,omitempty"`
	// Proof is what the uploader's server has signed; nil where a plain peer gave the file.
	Proof  json.RawMessage `json:"proof,omitempty"`
	UsedTS int64           `json:"used_ts,omitempty"` // of remote media, by mediaUsedStep
	File   string          `json:"file,omitempty"`
}

// Pending says whether the ID still waits for its content.
func (m *Media) Pending() bool { return m.ExpiresTS != 0 }

// Thumbnail is a stored thumbnail; its variant says what was asked for.
type Thumbnail struct {
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`
	File        string `json:"file"`
}

// MediaLimits bound the bytes stored: of one user's uploads, of all users', and of what was fetched from other servers, of which the longest
// unused goes first.
type MediaLimits struct{ User, Local, Remote int64 }

func mediaKey(t table, id MediaID) dbKey { return key(t).str(string(id.Server)).str(id.ID) }

// Media reads a record; ErrNotFound.
func (r *Reader) Media(id MediaID) (*Media, error) {
	m := &Media{MediaID: id}
	return m, r.getJSON(mediaKey(tableMedia, id), m)
}

// AllMedia calls f for each record, by server and ID.
func (r *Reader) AllMedia(f func(*Media) (bool, error)) error {
	return r.scan(key(tableMedia), nil, false, func(k, v []byte) (bool, error) {
		p := parts(k)
		m := &Media{MediaID: MediaID{eventgraph.ServerName(p.str()), p.str()}}
		if err := json.Unmarshal(v, m); err != nil {
			return false, fmt.Errorf("record %x in the store: %w", k, err)
		}
		return f(m)
	})
}

// MediaUsage is the bytes stored: of a user's uploads ("": of all users'), of what was fetched, and of thumbnails.
func (r *Reader) MediaUsage(user eventgraph.UserID) (local, remote, thumbnails int64, err error) {
	if local, err = r.mediaBytes("local", string(user)); err != nil {
		return 0, 0, 0, err
	}
	if remote, err = r.mediaBytes("remote", ""); err != nil {
		return 0, 0, 0, err
	}
	thumbnails, err = r.mediaBytes("thumbnails", "")
	return local, remote, thumbnails, err
}

func mediaBytesKey(kind, user string) dbKey { return key(tableMeta).str("media").str(kind).str(user) }

func (r *Reader) mediaBytes(kind, user string) (n int64, err error) {
	err = r.read(mediaBytesKey(kind, user), func(v []byte) error {
		if len(v) != 8 {
			return errors.New("count of media in the store: not 8 bytes")
		}
		n = int64(binary.BigEndian.Uint64(v))
		return nil
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return n, err
}

// countMedia adds to a count; ErrMediaQuota if that makes it more than limit.
func (tx *Tx) countMedia(kind, user string, by, limit int64) error {
	n, err := tx.mediaBytes(kind, user)
	if err != nil {
		return err
	}
	if n += by; by > 0 && n > limit {
		return ErrMediaQuota
	}
	return tx.put(mediaBytesKey(kind, user), binary.BigEndian.AppendUint64(nil, uint64(max(n, 0))))
}

// MediaUsers calls f for each local user who has uploaded or fetched the media.
func (r *Reader) MediaUsers(id MediaID, f func(eventgraph.UserID) (bool, error)) error {
	prefix := mediaKey(tableMediaUser, id)
	return r.scan(prefix, nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		p.str()
		return f(eventgraph.UserID(p.str()))
	})
}

// HasMediaUser says whether the local user has uploaded or fetched the media.
func (r *Reader) HasMediaUser(id MediaID, user eventgraph.UserID) (bool, error) {
	return r.has(mediaKey(tableMediaUser, id).str(string(user)))
}

// CreateMedia reserves an ID whose content is to come by ExpiresTS; now in ms. Errors: ErrMediaPending, ErrMediaExists.
func (tx *Tx) CreateMedia(m *Media, now int64) error {
	if has, err := tx.has(mediaKey(tableMedia, m.MediaID)); err != nil || has {
		return errors.Join(err, ErrMediaExists)
	}
	waiting := 0
	err := tx.scan(key(tableMediaPending).str(string(m.User)), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.str()
		if expires := int64(p.u64()); expires > now {
			waiting++
			return true, nil
		}
		old := MediaID{m.Server, p.str()}
		return true, errors.Join(tx.delete(slices.Clone(k)), tx.delete(mediaKey(tableMedia, old)))
	})
	if err != nil {
		return err
	}
	if waiting >= MaxPendingMedia {
		return ErrMediaPending
	}
	return errors.Join(tx.put(pendingMediaKey(m), nil), tx.putJSON(mediaKey(tableMedia, m.MediaID), m))
}

func pendingMediaKey(m *Media) dbKey {
	return key(tableMediaPending).str(string(m.User)).u64(uint64(m.ExpiresTS)).str(m.ID)
}

// KeepMedia gives media the content that was written to w, which it closes: Size, SHA256 and File of m are set. local says that a user here has
// uploaded it, and it counts as his; else it was fetched for m.User. On an error nothing is kept. Errors: ErrMediaExists, ErrMediaQuota, ErrDiskFull.
func (s *Store) KeepMedia(ctx context.Context, w *MediaWriter, m *Media, local bool, limits MediaLimits) error {
	m.Size, m.SHA256 = w.size, w.hash.Sum(nil)
	if local && m.Size > min(limits.User, limits.Local) || !local && m.Size > limits.Remote {
		w.Abort()
		return ErrMediaQuota
	}
	var drop []string
	name, err := s.placeMedia(ctx, w, m.MediaID, "")
	if err != nil {
		return err
	}
	m.File = hex.EncodeToString(name[:])
	_, err = s.Update(ctx, func(tx *Tx) error {
		drop = nil
		before, err := tx.Media(m.MediaID)
		switch {
		case err == nil && before.Pending():
			err = tx.delete(pendingMediaKey(before))
		case err == nil && s.mediaIsThere(before):
			return ErrMediaExists
		case err == nil: // its file has been lost
			err = tx.forgetMedia(before, before.Uploaded())
		case errors.Is(err, ErrNotFound):
			err = nil
		}
		if err != nil {
			return err
		}
		m.ExpiresTS = 0
		if local {
			err = errors.Join(tx.countMedia("local", string(m.User), m.Size, limits.User), tx.countMedia("local", "", m.Size, limits.Local))
		} else if drop, err = tx.makeRoom(m.Size, limits.Remote); err == nil {
			m.UsedTS = m.CreatedTS
			err = errors.Join(tx.countMedia("remote", "", m.Size, limits.Remote), tx.put(usedMediaKey(m), nil))
		}
		if err != nil {
			return err
		}
		return errors.Join(
			tx.putJSON(mediaKey(tableMedia, m.MediaID), m),
			tx.put(key(tableMediaFile).bytes(name[:]), nil),
			tx.put(mediaKey(tableMediaUser, m.MediaID).str(string(m.User)), nil),
		)
	})
	if err != nil {
		s.removeMedia(m.File)
		return err
	}
	s.removeMedia(drop...)
	return nil
}

// Uploaded says whether the media count as a local user's: what was fetched has a time of last use.
func (m *Media) Uploaded() bool { return m.UsedTS == 0 }

func usedMediaKey(m *Media) dbKey {
	return key(tableMediaUsed).u64(uint64(m.UsedTS)).str(string(m.Server)).str(m.ID)
}

// makeRoom forgets fetched media, the longest unused first, until size more are within limit. It returns their files.
func (tx *Tx) makeRoom(size, limit int64) (drop []string, err error) {
	have, err := tx.mediaBytes("remote", "")
	if err != nil || have+size <= limit {
		return nil, err
	}
	err = tx.scan(key(tableMediaUsed), nil, false, func(k, _ []byte) (bool, error) {
		p := parts(k)
		p.u64()
		m, err := tx.Media(MediaID{eventgraph.ServerName(p.str()), p.str()})
		if errors.Is(err, ErrNotFound) {
			return true, tx.delete(slices.Clone(k))
		}
		if err != nil {
			return false, err
		}
		files, err := tx.dropMedia(m)
		drop = append(drop, files...)
		have -= m.Size
		return have+size > limit, err
	})
	return drop, err
}

// dropMedia deletes all records of media and returns their files, which are to be removed when that is durable.
func (tx *Tx) dropMedia(m *Media) (files []string, err error) {
	if m.File != "" {
		files = append(files, m.File)
	}
	err = tx.scan(mediaKey(tableMediaThumb, m.MediaID), nil, false, func(k, v []byte) (bool, error) {
		var t Thumbnail
		if err := json.Unmarshal(v, &t); err != nil {
			return false, err
		}
		files = append(files, t.File)
		return true, errors.Join(tx.countMedia("thumbnails", "", -t.Size, 0), tx.forgetFile(t.File), tx.delete(slices.Clone(k)))
	})
	return files, errors.Join(err, tx.forgetMedia(m, m.Uploaded()), tx.deletePrefix(mediaKey(tableMediaUser, m.MediaID)))
}

// forgetMedia deletes the record of media that have content, and takes them off the counts.
func (tx *Tx) forgetMedia(m *Media, local bool) error {
	err := errors.Join(tx.delete(mediaKey(tableMedia, m.MediaID)), tx.forgetFile(m.File))
	switch {
	case m.Pending():
		return errors.Join(err, tx.delete(pendingMediaKey(m)))
	case local:
		return errors.Join(err, tx.countMedia("local", string(m.User), -m.Size, 0), tx.countMedia("local", "", -m.Size, 0))
	}
	return errors.Join(err, tx.countMedia("remote", "", -m.Size, 0), tx.delete(usedMediaKey(m)))
}

func (tx *Tx) forgetFile(name string) error {
	raw, err := hex.DecodeString(name)
	if err != nil || len(raw) == 0 {
		return err
	}
	return tx.delete(key(tableMediaFile).bytes(raw))
}

// DeleteMedia forgets media with its thumbnails, then removes the files; ErrNotFound.
func (s *Store) DeleteMedia(ctx context.Context, id MediaID) error {
	var files []string
	_, err := s.Update(ctx, func(tx *Tx) error {
		m, err := tx.Media(id)
		if err != nil {
			return err
		}
		files, err = tx.dropMedia(m)
		return err
	})
	if err != nil {
		return err
	}
	s.removeMedia(files...)
	return nil
}

// UseMedia notes that a local user has fetched the media at now (ms). Mostly that is known already, and nothing is written.
func (s *Store) UseMedia(ctx context.Context, id MediaID, user eventgraph.UserID, now int64) error {
	known := false
	due := func(r *Reader) (*Media, error) {
		m, err := r.Media(id)
		if err == nil {
			known, err = r.HasMediaUser(id, user)
		}
		return m, err
	}
	stale := func(m *Media) bool { return !m.Uploaded() && now-m.UsedTS > mediaUsedStep }
	var m *Media
	if err := s.View(func(r *Reader) (err error) { m, err = due(r); return err }); err != nil || known && !stale(m) {
		return err
	}
	_, err := s.Update(ctx, func(tx *Tx) error {
		m, err := due(&tx.Reader)
		if err != nil {
			return err
		}
		if !known {
			err = tx.put(mediaKey(tableMediaUser, id).str(string(user)), nil)
		}
		if stale(m) {
			err = errors.Join(err, tx.delete(usedMediaKey(m)))
			m.UsedTS = now
			err = errors.Join(err, tx.put(usedMediaKey(m), nil), tx.putJSON(mediaKey(tableMedia, id), m))
		}
		return err
	})
	return err
}

// Thumbnail reads the record of a thumbnail; ErrNotFound.
func (r *Reader) Thumbnail(id MediaID, variant string) (*Thumbnail, error) {
	t := &Thumbnail{}
	return t, r.getJSON(mediaKey(tableMediaThumb, id).str(variant), t)
}

// KeepThumbnail keeps what was written to w as a thumbnail of media, if there is room for it. It closes w.
func (s *Store) KeepThumbnail(ctx context.Context, w *MediaWriter, id MediaID, variant, contentType string) (kept bool, err error) {
	t := &Thumbnail{ContentType: contentType, Size: w.size}
	name, err := s.placeMedia(ctx, w, id, variant)
	if err != nil {
		return false, err
	}
	t.File = hex.EncodeToString(name[:])
	_, err = s.Update(ctx, func(tx *Tx) error {
		kept = false
		if m, err := tx.Media(id); err != nil || m.Pending() {
			return err
		}
		count := 0
		err := tx.scan(mediaKey(tableMediaThumb, id), nil, false, func(k, _ []byte) (bool, error) {
			count++
			p := parts(k)
			p.str()
			p.str()
			if p.str() == variant {
				count = MaxThumbnails
			}
			return true, nil
		})
		if err != nil || count >= MaxThumbnails {
			return err
		}
		if err := tx.countMedia("thumbnails", "", t.Size, maxThumbnailBytes); err != nil {
			if errors.Is(err, ErrMediaQuota) {
				err = nil
			}
			return err
		}
		kept = true
		return errors.Join(tx.putJSON(mediaKey(tableMediaThumb, id).str(variant), t), tx.put(key(tableMediaFile).bytes(name[:]), nil))
	})
	if err != nil || !kept {
		s.removeMedia(t.File)
	}
	return kept && err == nil, err
}
