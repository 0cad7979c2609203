package p2ptransport

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"syscall"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// networkHeader is where a socket filter finds the IP header (SKF_NET_OFF): its own offsets begin at the TCP header.
const networkHeader = 0xfff00000

// keepLocal opens a listening TCP socket anew, so that the system drops, unanswered, what comes to it from outside of
// localRanges. Without that the system would shake hands with anybody before this program hears of it. The socket is plain
// TCP: Go's default, Multipath TCP, knows no filters, and could be asked to go on to other addresses.
func keepLocal(l manet.Listener) manet.Listener {
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return l
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		return errors.Join(conn.Control(func(fd uintptr) { err = attachFilter(int(fd), addr.IP.To4() != nil) }), err)
	}}
	config.SetMultipathTCP(false)
	network := "tcp6"
	if addr.IP.To4() != nil {
		network = "tcp4"
	}
	_ = l.Close()                                                                // two sockets cannot have the address at once
	filtered, err := config.Listen(context.Background(), network, addr.String()) // returns at once
	if err != nil {
		return l // closed: nothing is let in
	}
	wrapped, err := manet.WrapNetListener(filtered)
	if err != nil {
		_ = filtered.Close()
		return l
	}
	return wrapped
}

func attachFilter(fd int, v4 bool) error {
	raw, err := bpf.Assemble(localFilter(v4))
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := &unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program)
}

// localFilter passes packets whose source is in localRanges, of IPv4 or of IPv6.
func localFilter(v4 bool) []bpf.Instruction {
	source := uint32(networkHeader + 8)
	if v4 {
		source = networkHeader + 12
	}
	var program []bpf.Instruction
	for _, r := range localRanges {
		if r.Addr().Is4() != v4 {
			continue
		}
		// Word by word: load, mask, compare, and on a difference go on behind this range's return.
		address, left := r.Addr().AsSlice(), r.Bits()
		words := (left + 31) / 32
		for i := range words {
			bits := min(left, 32)
			left -= bits
			program = append(program,
				bpf.LoadAbsolute{Off: source + uint32(4*i), Size: 4},
				bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - bits)},
				bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(address[4*i:]), SkipFalse: uint8(3*(words-1-i) + 1)},
			)
		}
		program = append(program, bpf.RetConstant{Val: 1 << 18}) // the whole packet
	}
	return append(program, bpf.RetConstant{Val: 0})
}
