// A control plane as one would write it over a weekend: go-control-plane's LinearCache, fed by Go's
// ZooKeeper client. It is a peer of the bench, so it does what MeshKeeper does for endpoints (the same
// znodes in, the same assignments out) in the way its libraries lead to: a one-shot watch on every
// service and instance, and one UpdateResource for each service that changed.
//
//	linear CONNECT ROOT CLIENTS ADMIN
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/go-zookeeper/zk"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Reads under way while loading; more gain nothing.
const depth = 128

type instance struct {
	Host     string            `json:"host"`
	Port     uint32            `json:"port"`
	Weight   uint32            `json:"weight"`
	Zone     string            `json:"zone"`
	Metadata map[string]string `json:"metadata"`
}

// bridge holds what was read; only the goroutine of run changes it after the load.
type bridge struct {
	conn     *zk.Conn
	root     string
	cache    *cache.LinearCache
	mutex    sync.Mutex
	services map[string]map[string]*endpoint.LbEndpoint
}

func main() {
	connect, root, clients, admin := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	var ready atomic.Bool
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	go func() { log.Fatal(http.ListenAndServe(admin, nil)) }()

	// Every watch that fires comes through here; the callback must not wait.
	events := make(chan zk.Event, 1<<20)
	callback := func(event zk.Event) {
		if event.Type > 0 {
			events <- event
		}
	}
	conn, _, err := zk.Connect(strings.Split(connect, ","), 30*time.Second,
		zk.WithEventCallback(callback), zk.WithLogInfo(false))
	check(err)
	b := &bridge{
		conn:     conn,
		root:     root,
		cache:    cache.NewLinearCache(resource.EndpointType),
		services: map[string]map[string]*endpoint.LbEndpoint{},
	}
	b.load()
	go b.run(events)
	go serve(clients, b.cache)
	ready.Store(true)
	select {}
}

func serve(address string, endpoints cache.Cache) {
	listener, err := net.Listen("tcp", address)
	check(err)
	ads := server.NewServer(context.Background(), endpoints, nil)
	grpcServer := grpc.NewServer(grpc.MaxRecvMsgSize(256 << 20))
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, ads)
	check(grpcServer.Serve(listener))
}

// load reads the whole tree and sets a watch on every node of it.
func (b *bridge) load() {
	names, _, _, err := b.conn.ChildrenW(b.root)
	check(err)
	each(names, func(name string) { b.list(name) })
	resources := map[string]types.Resource{}
	for name := range b.services {
		resources[name] = b.assignment(name)
	}
	b.cache.SetResources(resources)
}

// list reads a service that is new or has other instances than before.
func (b *bridge) list(service string) {
	children, _, _, err := b.conn.ChildrenW(path.Join(b.root, service))
	if err != nil {
		return
	}
	b.mutex.Lock()
	known := b.services[service]
	instances := make(map[string]*endpoint.LbEndpoint, len(children))
	var missing []string
	for _, child := range children {
		if endpoint := known[child]; endpoint != nil {
			instances[child] = endpoint
		} else {
			missing = append(missing, child)
		}
	}
	b.services[service] = instances
	b.mutex.Unlock()
	each(missing, func(child string) { b.read(service, child) })
}

func (b *bridge) read(service, child string) {
	data, _, _, err := b.conn.GetW(path.Join(b.root, service, child))
	var read instance
	if err == nil {
		err = json.Unmarshal(data, &read)
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if err != nil {
		delete(b.services[service], child)
		return
	}
	b.services[service][child] = lbEndpoint(&read)
}

// run takes the watches that fired, each of which has to be set again.
func (b *bridge) run(events <-chan zk.Event) {
	for event := range events {
		parts := strings.Split(strings.TrimPrefix(event.Path, b.root+"/"), "/")
		switch {
		case event.Path == b.root:
			b.roster()
			continue
		case event.Type == zk.EventNodeChildrenChanged:
			b.list(parts[0])
		case event.Type == zk.EventNodeDataChanged && len(parts) == 2:
			b.read(parts[0], parts[1])
		default:
			continue
		}
		check(b.cache.UpdateResource(parts[0], b.assignment(parts[0])))
	}
}

// roster reads which services there are.
func (b *bridge) roster() {
	names, _, _, err := b.conn.ChildrenW(b.root)
	if err != nil {
		return
	}
	for _, name := range names {
		if b.services[name] == nil {
			b.list(name)
			check(b.cache.UpdateResource(name, b.assignment(name)))
		}
	}
}

func (b *bridge) assignment(service string) *endpoint.ClusterLoadAssignment {
	names := make([]string, 0, len(b.services[service]))
	for name := range b.services[service] {
		names = append(names, name)
	}
	sort.Strings(names)
	endpoints := make([]*endpoint.LbEndpoint, 0, len(names))
	for _, name := range names {
		endpoints = append(endpoints, b.services[service][name])
	}
	return &endpoint.ClusterLoadAssignment{
		ClusterName: service,
		Endpoints: []*endpoint.LocalityLbEndpoints{{
			Locality:    &core.Locality{Zone: "a"},
			LbEndpoints: endpoints,
		}},
	}
}

func lbEndpoint(read *instance) *endpoint.LbEndpoint {
	fields := map[string]*structpb.Value{}
	for key, value := range read.Metadata {
		fields[key] = structpb.NewStringValue(value)
	}
	address := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address:       read.Host,
		PortSpecifier: &core.SocketAddress_PortValue{PortValue: read.Port},
	}}}
	return &endpoint.LbEndpoint{
		HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: address}},
		HealthStatus:   core.HealthStatus_HEALTHY,
		Metadata: &core.Metadata{FilterMetadata: map[string]*structpb.Struct{
			"envoy.lb": {Fields: fields},
		}},
		LoadBalancingWeight: wrapperspb.UInt32(read.Weight),
	}
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

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "linear:", err)
		os.Exit(1)
	}
}
