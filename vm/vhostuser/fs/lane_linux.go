package fs

import (
	"sync"
	"time"

	"github.com/coracle-engine/coracle/vm/vhostuser"
)

const (
	// maxBusy is how many requests of one queue are answered at once beside the leader's.
	maxBusy = 32
	// maxQuiet is how many answers the leader gives before the guest hears of them, when it has more to do.
	maxQuiet = 16
	// patience is how long the leader may be held up by one request before another goroutine takes the lead.
	patience = time.Millisecond
)

// lane answers the requests of one queue. One goroutine leads: it takes requests from the ring and answers what is quick
// itself, since a hand-over costs more than most answers do. Big requests get a worker. Whatever holds the leader up (a
// file system of the host that hangs, a lock) costs it the lead, so that no request waits for another.
type lane struct {
	dev *device
	q   *vhostuser.Queue

	slots  chan struct{}  // one is held for each goroutine in Serve but the leader
	flight sync.WaitGroup // every goroutine
	timer  *time.Timer    // runs watch

	mu      sync.Mutex // taken for every use of q but Wait
	turn    int        // the number of the goroutine that leads
	busy    bool       // the leader answers a request
	begun   uint64     // how many requests leaders have begun to answer
	seen    uint64     // begun when watch looked last
	watched bool       // timer runs
	starved bool       // nobody could overtake: all slots are held
	quiet   int        // answers that the guest has not heard of
	err     error      // why the queue has ended
}

func newLane(dev *device, q *vhostuser.Queue) *lane {
	l := &lane{dev: dev, q: q, slots: make(chan struct{}, maxBusy)}
	l.timer = time.AfterFunc(time.Hour, l.watch)
	l.timer.Stop()
	return l
}

// run answers requests until the queue ends, and returns why it did when all of them are answered.
func (l *lane) run() error {
	l.flight.Go(func() { l.lead(0) })
	l.flight.Wait()
	l.timer.Stop()
	return l.err
}

// lead takes requests until the queue ends or another goroutine has taken the lead.
func (l *lane) lead(turn int) {
	for {
		r := requests.Get().(*request)
		if err := l.take(r); err != nil {
			requests.Put(r)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.err = err
			return
		}
		if err := r.split(); err != nil {
			l.dev.log.Debug("refused a request of the guest", "queue", l.q.Index(), "err", err)
			r.fail()
			l.give(r, turn)
		} else if r.big() {
			l.slots <- struct{}{}
			l.flight.Go(func() { l.work(r) })
		} else if !l.answer(r, turn) {
			l.release()
			return
		}
	}
}

// take waits for the next request.
func (l *lane) take(r *request) error {
	for {
		ok, more, err := l.pop(r)
		if ok || err != nil {
			return err
		}
		if more {
			continue
		}
		if err := l.q.Wait(); err != nil {
			return err
		}
	}
}

// pop takes the next request if there is one. Before it says that there is none, the guest has heard of all answers and
// kicks; more is whether it must be called again at once.
func (l *lane) pop(r *request) (ok, more bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.q.DisableKicks()
	ok, err = l.q.Pop(&r.chain)
	if ok || err != nil {
		return ok, false, err
	}
	l.notify()
	return false, l.q.EnableKicks(), nil
}

// notify tells the guest of answers; l.mu is held.
func (l *lane) notify() {
	l.quiet = 0
	l.q.Notify()
}

// answer answers r by the leader itself. It returns false if that took so long that another leads now.
func (l *lane) answer(r *request, turn int) bool {
	l.mu.Lock()
	l.busy = true
	l.begun++
	if !l.watched {
		l.look(patience)
	}
	l.mu.Unlock()
	r.finish(l.dev.serve(r))
	return l.give(r, turn)
}

// work answers r by a goroutine of its own, which holds a slot.
func (l *lane) work(r *request) {
	r.finish(l.dev.serve(r))
	l.give(r, -1)
	l.release()
}

// give returns an answered request to the guest, at once unless the leader has more to do. It returns whether turn leads.
func (l *lane) give(r *request, turn int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.q.Push(&r.chain)
	requests.Put(r)
	leads := l.turn == turn
	if leads {
		l.busy = false
	}
	if l.quiet++; !leads || l.quiet >= maxQuiet {
		l.notify()
	}
	return leads
}

// look has watch called after d; l.mu is held. The timer runs on from request to request: one for each would wake the
// runtime's poller every time, which costs more than the request.
func (l *lane) look(d time.Duration) {
	l.watched, l.seen = true, l.begun
	l.timer.Reset(d)
}

// release gives a slot back.
func (l *lane) release() {
	<-l.slots
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.starved && l.busy {
		l.look(0)
	}
	l.starved = false
}

// watch looks whether the leader is still at the request that it was at when watch looked last. Then this goroutine takes
// the lead, and the one that had it goes on as a worker.
func (l *lane) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched = false
	if !l.busy {
		return
	}
	if l.begun != l.seen {
		l.look(patience)
		return
	}
	select {
	case l.slots <- struct{}{}:
	default:
		l.starved = true
		return
	}
	l.busy = false
	l.turn++
	turn := l.turn
	l.notify()
	l.flight.Go(func() { l.lead(turn) }) // not from zero: the one who is overtaken is in flight
}
