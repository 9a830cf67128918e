import com.google.gson.Gson;
import io.grpc.HandlerRegistry;
import io.grpc.InsecureServerCredentials;
import io.grpc.ServerMethodDefinition;
import io.grpc.stub.ServerCalls;
import io.grpc.xds.XdsServerBuilder;
import io.grpc.xds.XdsServerBuilder.XdsServingStatusListener;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/**
 * A grpc-java server that gets its listener over xDS and answers every call with its name.
 *
 * <pre>Server NAME[=PORT]</pre>
 *
 * It prints a line with its port, and one for each change of its serving mode.
 */
public final class Server {
    public static void main(String[] arguments) throws Exception {
        String[] parts = arguments[0].split("=");
        int port = parts.length > 1 ? Integer.parseInt(parts[1]) : freePort();
        byte[] name = parts[0].getBytes(StandardCharsets.UTF_8);
        var server = XdsServerBuilder.forPort(port, InsecureServerCredentials.create())
                .xdsServingStatusListener(new Mode())
                .fallbackHandlerRegistry(new Answer(name))
                .build();
        say(Map.of("backend", parts[0], "port", port));
        server.start();
        server.awaitTermination();
    }

    private static int freePort() throws Exception {
        try (ServerSocket socket = new ServerSocket(0)) {
            return socket.getLocalPort();
        }
    }

    private static synchronized void say(Map<String, Object> line) {
        System.out.println(new Gson().toJson(line));
    }

    private static final class Mode implements XdsServingStatusListener {
        @Override
        public void onServing() {
            say(Map.of("mode", "serving", "reason", ""));
        }

        @Override
        public void onNotServing(Throwable reason) {
            say(Map.of("mode", "not serving", "reason", String.valueOf(reason.getMessage())));
        }
    }

    /** Answers whatever method is called. */
    private static final class Answer extends HandlerRegistry {
        private final byte[] name;

        private Answer(byte[] name) {
            this.name = name;
        }

        @Override
        public ServerMethodDefinition<?, ?> lookupMethod(String method, String authority) {
            return ServerMethodDefinition.create(Raw.method(method), ServerCalls.asyncUnaryCall(
                    (ServerCalls.UnaryMethod<byte[], byte[]>) (request, reply) -> {
                        reply.onNext(name);
                        reply.onCompleted();
                    }));
        }
    }
}
