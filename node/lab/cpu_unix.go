//go:build unix

package lab

import (
	"syscall"
	"time"
)

// processCPU is the CPU time that the process has used: real time, in a synctest bubble too.
func processCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
