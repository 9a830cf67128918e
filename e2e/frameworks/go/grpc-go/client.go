package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	_ "google.golang.org/grpc/xds"
)

const (
	outstanding = 64
	deadline    = 10 * time.Second
)

// tally is what came of a number of calls; many goroutines add to it.
type tally struct {
	began    time.Time
	mutex    sync.Mutex
	counts   map[string]int
	failures map[string]int
}

func newTally() *tally {
	return &tally{began: time.Now(), counts: map[string]int{}, failures: map[string]int{}}
}

func (t *tally) add(name string, err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if err == nil {
		t.counts[name]++
		return
	}
	failure := status.Convert(err)
	t.failures[constant(failure.Code().String())+": "+failure.Message()]++
}

func (t *tally) report() any {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	calls := 0
	for _, counted := range []map[string]int{t.counts, t.failures} {
		for _, n := range counted {
			calls += n
		}
	}
	seconds := math.Round(time.Since(t.began).Seconds()*1000) / 1000
	return map[string]any{"calls": calls, "counts": t.counts, "failures": t.failures, "seconds": seconds}
}

var capital = regexp.MustCompile(`([a-z])([A-Z])`)

// constant turns DeadlineExceeded into DEADLINE_EXCEEDED, as the other clients write it.
func constant(code string) string {
	return strings.ToUpper(capital.ReplaceAllString(code, "${1}_${2}"))
}

type client struct {
	connection *grpc.ClientConn
	traffic    *traffic
}

// traffic is calls in the background.
type traffic struct {
	stopping atomic.Bool
	ended    chan struct{}
	tally    *tally
}

func steer(target string, input io.Reader) error {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	connection.Connect()
	client := &client{connection: connection}
	lines := bufio.NewScanner(input)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		if words[0] == "quit" {
			break
		}
		answer, err := client.answer(words[0], words[1:])
		if err != nil {
			answer = map[string]any{"error": lines.Text() + ": " + err.Error()}
		}
		say(answer)
	}
	return lines.Err()
}

func (c *client) answer(command string, arguments []string) (any, error) {
	switch command {
	case "ready":
		seconds, err := number(arguments, 0, 30)
		if err != nil {
			return nil, err
		}
		return c.ready(time.Duration(seconds * float64(time.Second))), nil
	case "call":
		calls, err := number(arguments, 0, math.NaN())
		if err != nil {
			return nil, err
		}
		lanes, err := number(arguments, 1, outstanding)
		if err != nil {
			return nil, err
		}
		var begun atomic.Int64
		tally := newTally()
		c.run(func() bool { return begun.Add(1) <= int64(calls) }, int(lanes), tally)
		return tally.report(), nil
	case "start":
		lanes, err := number(arguments, 0, 1)
		if err != nil {
			return nil, err
		}
		return c.start(int(lanes))
	case "stop":
		return c.stop()
	}
	return nil, fmt.Errorf("unknown command")
}

func number(arguments []string, at int, otherwise float64) (float64, error) {
	if at < len(arguments) {
		return strconv.ParseFloat(arguments[at], 64)
	}
	if math.IsNaN(otherwise) {
		return 0, fmt.Errorf("a number is missing")
	}
	return otherwise, nil
}

func (c *client) ready(patience time.Duration) any {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	state := c.connection.GetState()
	for state != connectivity.Ready && c.connection.WaitForStateChange(ctx, state) {
		state = c.connection.GetState()
		if state == connectivity.Idle {
			c.connection.Connect()
		}
	}
	return map[string]any{"ready": state == connectivity.Ready, "state": state.String()}
}

// start makes calls without end, until stop.
func (c *client) start(lanes int) (any, error) {
	if c.traffic != nil {
		return nil, fmt.Errorf("traffic is running already")
	}
	running := &traffic{ended: make(chan struct{}), tally: newTally()}
	c.traffic = running
	go func() {
		c.run(func() bool { return !running.stopping.Load() }, lanes, running.tally)
		close(running.ended)
	}()
	return map[string]any{"started": true}, nil
}

func (c *client) stop() (any, error) {
	if c.traffic == nil {
		return nil, fmt.Errorf("no traffic is running")
	}
	running := c.traffic
	c.traffic = nil
	running.stopping.Store(true)
	<-running.ended
	return running.tally.report(), nil
}

func (c *client) run(wantsMore func() bool, lanes int, tally *tally) {
	var callers sync.WaitGroup
	for range lanes {
		callers.Go(func() {
			for wantsMore() {
				tally.add(c.once())
			}
		})
	}
	callers.Wait()
}

func (c *client) once() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var request, reply []byte
	err := c.connection.Invoke(ctx, method, &request, &reply, grpc.ForceCodec(raw{}))
	return string(reply), err
}
