// Command plexus is a Matrix homeserver for one device. "plexus help" lists what it can do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

const usage = `plexus is a Matrix homeserver for this device. It finds others on the LAN and talks to them directly.

  plexus [run] [flags]            start the homeserver; "plexus run -h" lists the flags
  plexus status [--json]          who is connected, and the rooms
  plexus peers                    connected peers
  plexus peers add MULTIADDR      connect to a peer now
  plexus user add NAME            make an account; the password is read from standard input
  plexus user list                the accounts; reset-password, disable and enable NAME change one
  plexus device list USER         the devices of a user; delete USER DEVICE… logs some out
  plexus room list                the rooms here; state ROOM [TYPE [KEY]] shows one's state
  plexus room leave ROOM [USER]   local users leave, all unless one is named
  plexus room purge ROOM --before TIME|EVENT   remove old messages from this device
  plexus media stats [--by-user]  how much is stored; purge [--unused TIME] removes what can be fetched again
  plexus reports                  what users have reported; delete NUMBER… removes some
  plexus notice USER TEXT         tell a user something, in a room of this server with them; --all in USER's place tells all
  plexus invite [--room ROOM]     make a link, also as a QR code, by which another device finds this one
  plexus invite --list            the links that are valid; --revoke ID ends one
  plexus join LINK [--user NAME]  act on such a link: connect, and join the room if it is of one
  plexus block [SERVER]           have nothing to do with a server; alone: which are blocked
  plexus unblock SERVER           end that
  plexus mesh-key FILE            make the key of a private mesh
  plexus version

All but run, mesh-key and version talk to the running node; --data DIR says which one. Those that show something take --json.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) { // asked for by -h, and printed
		fmt.Fprintln(os.Stderr, "plexus:", err)
		stop()
		os.Exit(1)
	}
}

// command runs one subcommand.
func command(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	name := "run"
	if len(args) > 0 && len(args[0]) > 0 && args[0][0] != '-' {
		name, args = args[0], args[1:]
	}
	switch name {
	case "run":
		return run(ctx, args, out, errOut)
	case "version":
		return version(out)
	case "mesh-key":
		return makeMeshKey(args, out)
	case "status":
		return status(ctx, args, out)
	case "peers":
		return peers(ctx, args, out)
	case "user":
		return user(ctx, args, in, out)
	case "device":
		return device(ctx, args, out)
	case "room":
		return room(ctx, args, out, errOut)
	case "media":
		return mediaCommand(ctx, args, out)
	case "reports":
		return reports(ctx, args, out)
	case "notice":
		return notice(ctx, args, out)
	case "invite":
		return invite(ctx, args, out)
	case "join":
		return join(ctx, args, out)
	case "block":
		return block(ctx, args, out)
	case "unblock":
		return unblock(ctx, args, out)
	case "help":
		_, err := io.WriteString(out, usage)
		return err
	}
	return fmt.Errorf("there is no subcommand %q; \"plexus help\" lists them", name)
}
