# The app with torch for CPUs: docker run -p 127.0.0.1:7860:7860 -v ./runs/openmoji/release:/model:ro joytag
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 joytag
WORKDIR /home/joytag
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu 'torch>=2.11'
COPY pyproject.toml setup.py README.md LICENSE source/
COPY configs source/configs
COPY data_prep source/data_prep
COPY joytag source/joytag
RUN pip install --no-cache-dir './source[app]' && rm -r source
USER joytag
EXPOSE 7860
HEALTHCHECK CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 7860), 5)"]
ENTRYPOINT ["joytag", "app", "--host", "0.0.0.0", "--port", "7860"]
CMD ["--public", "--model", "/model"]
