package federation

import (
	"context"
	"errors"
	"slices"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Who holds a server's identity key can certify devices of their own. It shows as two certificates of one seq that differ: both are kept, only the
// devices in both count, and the person is told (design.md §1). Of our own server any certificate is too many that is not ours: no other device has
// our identity key.

// putDocument stores a document, and tells the person when it shows that somebody else holds the server's identity key.
func (f *Federation) putDocument(ctx context.Context, d *eventgraph.KeyDocument) error {
	var before, after bool
	_, err := f.Store.Update(ctx, func(tx *store.Tx) (err error) {
		if before, err = f.contradicted(&tx.Reader, d.ServerName); err != nil {
			return err
		}
		if d.ServerName == f.server { // ours is not in the store else
			if err := tx.PutKeyDocument(f.KeyDocument()); err != nil && !errors.Is(err, store.ErrCertificate) {
				return err
			}
		}
		if err := tx.PutKeyDocument(d); err != nil {
			return err
		}
		after, err = f.contradicted(&tx.Reader, d.ServerName)
		return err
	})
	switch {
	case err != nil || before || !after:
	case d.ServerName == f.server:
		f.Log.Warn("another device has shown a certificate of this server, made with its identity key: somebody has a copy of that key and can pass for you. " +
			"Tell those you talk with, by another way than Matrix, and begin anew in another data directory")
	default:
		f.Log.Warn("a server has shown two certificates that contradict each other: somebody else may hold its identity key. Only devices in both are believed. "+
			"Ask its owner, by another way than Matrix; until then \"plexus block\" ends all dealings with it", "server", d.ServerName)
	}
	return err
}

// contradicted says whether what is held of the server shows that two hold its identity key.
func (f *Federation) contradicted(r *store.Reader, server eventgraph.ServerName) (bool, error) {
	certificates, err := r.Certificates(server)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if len(certificates) > 1 || server != f.server {
		return len(certificates) > 1, err
	}
	own := f.KeyDocument().Certificate
	return len(certificates) == 1 && own != nil && !slices.Equal(certificates[0].Devices, own.Devices), err
}

// Compromised lists the servers, our own too, of which two certificates contradict each other.
func (f *Federation) Compromised() (servers []eventgraph.ServerName, err error) {
	err = f.Store.View(func(r *store.Reader) error {
		own, err := f.contradicted(r, f.server)
		if err != nil {
			return err
		}
		if own {
			servers = append(servers, f.server)
		}
		return r.Contradicted(func(server eventgraph.ServerName) (bool, error) {
			if server != f.server {
				servers = append(servers, server)
			}
			return true, nil
		})
	})
	return servers, err
}
