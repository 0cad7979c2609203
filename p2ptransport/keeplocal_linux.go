package p2ptransport

import (
	"encoding/binary"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// networkHeader is where a socket filter finds the IP header (SKF_NET_OFF): its own offsets begin at the TCP header.
const networkHeader = 0xfff00000

// keepLocal lets the system drop, unanswered, what comes to a listening TCP socket from outside of localRanges. Without it
// the system would shake hands with anybody before this program hears of it. Where it cannot be had, gate closes what was
// accepted.
func keepLocal(l net.Listener) {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return
	}
	addr, ok := tcp.Addr().(*net.TCPAddr)
	if !ok {
		return
	}
	raw, err := bpf.Assemble(localFilter(addr.IP.To4() != nil))
	if err != nil {
		return
	}
	conn, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	filters := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filters[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	program := &unix.SockFprog{Len: uint16(len(filters)), Filter: (*unix.SockFilter)(unsafe.Pointer(&filters[0]))}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.SetsockoptSockFprog(int(fd), syscall.SOL_SOCKET, unix.SO_ATTACH_FILTER, program)
	})
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
