// Package mirror holds what a program would read of the registrations with Go's ZooKeeper client: a
// one-shot watch on every service and instance, each set again after it fired. The peers of the bench
// share it, so that they differ only in what they do with what was read.
//
// Of instances it keeps what the peer made of them, so that a change costs the peer one of them.
package mirror

import (
	"encoding/json"
	"path"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

// Reads under way while loading; more gain nothing.
const depth = 128

// Instance is the data of a znode.
type Instance struct {
	Host     string            `json:"host"`
	Port     uint32            `json:"port"`
	Weight   uint32            `json:"weight"`
	Zone     string            `json:"zone"`
	Metadata map[string]string `json:"metadata"`
}

// Mirror is changed by Load, and after it by Run alone.
type Mirror[T any] struct {
	conn     *zk.Conn
	events   <-chan zk.Event
	root     string
	render   func(*Instance) T
	mutex    sync.Mutex
	services map[string]map[string]T
}

// Connect opens a session; nothing is read yet.
func Connect[T any](connect, root string, render func(*Instance) T) (*Mirror[T], error) {
	// Every watch that fires comes through here; the callback must not wait.
	events := make(chan zk.Event, 1<<20)
	callback := func(event zk.Event) {
		if event.Type > 0 {
			events <- event
		}
	}
	conn, _, err := zk.Connect(strings.Split(connect, ","), 30*time.Second,
		zk.WithEventCallback(callback), zk.WithLogInfo(false))
	if err != nil {
		return nil, err
	}
	return &Mirror[T]{
		conn:     conn,
		events:   events,
		root:     root,
		render:   render,
		services: map[string]map[string]T{},
	}, nil
}

// Load reads the whole tree, sets a watch on every node of it, and gives every service.
func (m *Mirror[T]) Load(on func(service string, instances []T)) error {
	names, _, _, err := m.conn.ChildrenW(m.root)
	if err != nil {
		return err
	}
	each(names, func(name string) { m.list(name) })
	for name := range m.services {
		on(name, m.instances(name))
	}
	return nil
}

// Run takes the watches that fired, each of which has to be set again, and gives each service that
// changed. It does not return.
func (m *Mirror[T]) Run(on func(service string, instances []T)) {
	for event := range m.events {
		parts := strings.Split(strings.TrimPrefix(event.Path, m.root+"/"), "/")
		switch {
		case event.Path == m.root:
			m.roster(on)
			continue
		case event.Type == zk.EventNodeChildrenChanged:
			m.list(parts[0])
		case event.Type == zk.EventNodeDataChanged && len(parts) == 2:
			m.read(parts[0], parts[1])
		default:
			continue
		}
		on(parts[0], m.instances(parts[0]))
	}
}

// roster reads which services there are.
func (m *Mirror[T]) roster(on func(service string, instances []T)) {
	names, _, _, err := m.conn.ChildrenW(m.root)
	if err != nil {
		return
	}
	for _, name := range names {
		if m.services[name] == nil {
			m.list(name)
			on(name, m.instances(name))
		}
	}
}

// list reads a service that is new or has other instances than before.
func (m *Mirror[T]) list(service string) {
	children, _, _, err := m.conn.ChildrenW(path.Join(m.root, service))
	if err != nil {
		return
	}
	m.mutex.Lock()
	known := m.services[service]
	instances := make(map[string]T, len(children))
	var missing []string
	for _, child := range children {
		if instance, is := known[child]; is {
			instances[child] = instance
		} else {
			missing = append(missing, child)
		}
	}
	m.services[service] = instances
	m.mutex.Unlock()
	each(missing, func(child string) { m.read(service, child) })
}

func (m *Mirror[T]) read(service, child string) {
	data, _, _, err := m.conn.GetW(path.Join(m.root, service, child))
	var read Instance
	if err == nil {
		err = json.Unmarshal(data, &read)
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if err != nil {
		delete(m.services[service], child)
		return
	}
	m.services[service][child] = m.render(&read)
}

// instances of the service, by name.
func (m *Mirror[T]) instances(service string) []T {
	names := make([]string, 0, len(m.services[service]))
	for name := range m.services[service] {
		names = append(names, name)
	}
	sort.Strings(names)
	instances := make([]T, 0, len(names))
	for _, name := range names {
		instances = append(instances, m.services[service][name])
	}
	return instances
}

// each does all, so many at once.
func each(names []string, do func(string)) {
	var group sync.WaitGroup
	slots := make(chan struct{}, depth)
	for _, name := range names {
		group.Add(1)
		slots <- struct{}{}
		go func() {
			defer group.Done()
			do(name)
			<-slots
		}()
	}
	group.Wait()
}
