package main

// The bridges that one meets (Slime, Higress) feed istiod by MCP over xDS: a state-of-the-world stream, whose
// every response is the complete set of a type. Changes that come before a set is acknowledged are
// coalesced into the next.

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	mcp "istio.io/api/mcp/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/gvk"
)

// feed holds every ServiceEntry as it is sent, and says when there are other ones.
type feed struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	mutex   sync.Mutex
	entries map[string]*anypb.Any
	version int
	changed chan struct{}
}

func newFeed() *feed {
	return &feed{entries: map[string]*anypb.Any{}, changed: make(chan struct{}, 1)}
}

// put takes an entry in; the stream sends it with all others as soon as it may.
func (f *feed) put(entry config.Config) {
	body, err := anypb.New(entry.Spec.(*networking.ServiceEntry))
	check(err)
	f.mutex.Lock()
	f.version++
	name := entry.Namespace + "/" + entry.Name
	f.entries[name], err = anypb.New(&mcp.Resource{
		Metadata: &mcp.Metadata{
			Name:       name,
			Version:    strconv.Itoa(f.version),
			CreateTime: &timestamppb.Timestamp{Seconds: 1},
		},
		Body: body,
	})
	f.mutex.Unlock()
	check(err)
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// listen serves istiod and returns the file that tells it where.
func (f *feed) listen() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := grpc.NewServer(grpc.MaxSendMsgSize(1 << 30))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, f)
	go func() { check(server.Serve(listener)) }()
	file, err := os.CreateTemp("", "mesh-*.yaml")
	check(err)
	_, err = fmt.Fprintf(file, "configSources:\n- address: xds://%s\n", listener.Addr())
	check(err)
	check(file.Close())
	return file.Name()
}

func (f *feed) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	requests := make(chan *discovery.DiscoveryRequest)
	go func() {
		defer close(requests)
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			requests <- request
		}
	}()
	entries := gvk.ServiceEntry.String()
	// A first request has a nonce too, so types are remembered.
	answered := map[string]bool{}
	// Nil while a set is not acknowledged, and before there is one.
	var changed chan struct{}
	for {
		select {
		case request, open := <-requests:
			switch {
			case !open:
				return nil
			case answered[request.TypeUrl] && request.TypeUrl == entries:
				changed = f.changed
			case answered[request.TypeUrl]:
			case request.TypeUrl == entries:
				if err := stream.Send(f.set(entries)); err != nil {
					return err
				}
			default:
				// There is nothing of any other type.
				if err := stream.Send(f.response(request.TypeUrl, nil)); err != nil {
					return err
				}
			}
			answered[request.TypeUrl] = true
		case <-changed:
			if err := stream.Send(f.set(entries)); err != nil {
				return err
			}
			changed = nil
		}
	}
}

func (f *feed) set(kind string) *discovery.DiscoveryResponse {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	resources := make([]*anypb.Any, 0, len(f.entries))
	for _, entry := range f.entries {
		resources = append(resources, entry)
	}
	return f.response(kind, resources)
}

func (f *feed) response(kind string, resources []*anypb.Any) *discovery.DiscoveryResponse {
	version := strconv.Itoa(f.version)
	return &discovery.DiscoveryResponse{TypeUrl: kind, VersionInfo: version, Nonce: version, Resources: resources}
}
